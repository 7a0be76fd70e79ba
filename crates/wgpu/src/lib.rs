//! The wgpu backend: Vulkan, Metal, DX12 and the browser.
