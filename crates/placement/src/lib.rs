//! Pure planning: which layer lives on which device.
