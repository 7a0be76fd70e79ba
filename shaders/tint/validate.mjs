// Validates shaders with Tint, through Dawn's null backend, which executes nothing.
//
// Usage: node validate.mjs SHADERS.json, a list of {name, code, valid, constants}. Every shader becomes a module and,
// if valid, a pipeline within WebGPU's default limits. Prints what Tint says against expectation.
// Exit code: 0, 1 if a shader is against expectation, 2 if there is no Dawn to ask.

import { readFileSync } from "node:fs";
import process from "node:process";

// Dawn must outlive all that it made.
let gpu;

async function open() {
  const { create, globals } = await import("webgpu");
  Object.assign(globalThis, globals);
  gpu = create(["backend=null"]);
  const adapter = await gpu.requestAdapter();
  const features = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix"];
  return adapter.requestDevice({ requiredFeatures: features.filter((one) => adapter.features.has(one)) });
}

async function complaint(device, { code, constants }) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const error = messages.find((message) => message.type === "error");
  if (!error) {
    const compute = { module, entryPoint: "main", constants: constants ?? {} };
    device.createComputePipeline({ layout: "auto", compute });
  }
  const scoped = await device.popErrorScope();
  if (error) {
    return `line ${error.lineNum}: ${error.message}: ${code.split("\n")[error.lineNum - 1]?.trim()}`;
  }
  return scoped?.message;
}

async function main(file) {
  let device;
  try {
    device = await open();
  } catch (error) {
    console.error(`no Dawn: ${error.message}`);
    return 2;
  }
  let failures = 0;
  for (const shader of JSON.parse(readFileSync(file, "utf8"))) {
    const said = await complaint(device, shader);
    if (shader.valid && said) {
      console.error(`${shader.name}: ${said}`);
      failures += 1;
    } else if (!shader.valid && !said) {
      console.error(`${shader.name}: Tint accepts it and should not`);
      failures += 1;
    }
  }
  return failures > 0 ? 1 : 0;
}

// Dawn's threads do not survive `process.exit`.
process.exitCode = await main(process.argv[2]);
