// The runner for WebAssembly: one model in onnxruntime-web, in a browser page or in Node.
// python_runner.py describes the protocol. In a page, commands come by long polling and replies go by POST;
// in Node they are lines on stdin and stdout, and files lie in the current folder.

const PROTOCOL = 1;
const ELEMENTS = [
  [1, "float32", Float32Array], [2, "uint8", Uint8Array], [3, "int8", Int8Array], [4, "uint16", Uint16Array],
  [5, "int16", Int16Array], [6, "int32", Int32Array], [7, "int64", BigInt64Array], [9, "bool", Uint8Array],
  [10, "float16", Uint16Array], [11, "float64", Float64Array], [12, "uint32", Uint32Array], [13, "uint64", BigUint64Array],
];

class Runner {
  // io: {read(name) -> ArrayBuffer, write(name, bytes), peak() -> bytes}
  constructor(ort, session, feeds, io) {
    Object.assign(this, { ort, session, feeds, io });
  }

  static async load(ort, io, options) {
    ort.env.wasm.numThreads = options.threads;
    ort.env.logLevel = "error";
    const model = new Uint8Array(await io.read("model.onnx"));
    const externalData = [];
    for (const name of options.data) externalData.push({ path: name, data: new Uint8Array(await io.read(name)) });
    const base_bytes = io.peak();
    const start = performance.now();
    const settings = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    if (externalData.length) settings.externalData = externalData;
    const session = await ort.InferenceSession.create(model, settings);
    const load_ms = performance.now() - start;
    const feeds = await readInputs(ort, session, io);
    const ready = {
      protocol: PROTOCOL, load_ms, base_bytes, onnxruntime: `web ${ort.env.versions.web ?? ort.env.versions.common}`,
      provider: "wasm", threads: ort.env.wasm.numThreads, affinity: [],
    };
    return [new Runner(ort, session, feeds, io), ready];
  }

  async run(samples, inner) {
    const times = [];
    for (let i = 0; i < samples; i++) {
      const start = performance.now();
      for (let k = 0; k < inner; k++) await this.session.run(this.feeds);
      times.push(Math.max(1, Math.round(((performance.now() - start) * 1e6) / inner)));
    }
    return { samples: times, peak_bytes: this.io.peak() };
  }

  async outputs() {
    const results = await this.session.run(this.feeds);
    const outputs = [];
    for (const [index, name] of this.session.outputNames.entries()) {
      const value = results[name];
      const known = ELEMENTS.find(([, type]) => type === value.type);
      if (!known) { outputs.push({ skipped: value.type }); continue; }
      const { buffer, byteOffset, byteLength } = value.data;
      const file = `output${index}.bin`;
      await this.io.write(file, new Uint8Array(buffer.slice(byteOffset, byteOffset + byteLength)));
      outputs.push({ file, element: known[0], shape: [...value.dims] });
    }
    return { outputs, peak_bytes: this.io.peak() };
  }

  async obey(line) {
    const [command, ...words] = line.trim().split(" ");
    if (command === "run") return this.run(Number(words[0]), Number(words[1]));
    if (command === "outputs") return this.outputs();
    throw new Error(`unknown command ${command}`);
  }
}

async function readInputs(ort, session, io) {
  const manifest = new TextDecoder().decode(await io.read("inputs.txt"));
  const lines = manifest.split("\n").filter((line) => line);
  const feeds = {};
  for (const [index, name] of session.inputNames.entries()) {
    const [element, file, ...dims] = lines[index].split(" ");
    const [, type, Values] = ELEMENTS.find(([number]) => number === Number(element));
    feeds[name] = new ort.Tensor(type, new Values(await io.read(file)), dims.map(Number));
  }
  return feeds;
}

// Load, say ready, obey until `next` returns nothing. Any failure is the last reply.
export async function serve(ort, io, options, next, reply) {
  try {
    const [runner, ready] = await Runner.load(ort, io, options);
    await reply(ready);
    for (let line; (line = await next()) && line.trim() !== "quit";) await reply(await runner.obey(line));
  } catch (error) {
    await reply({ error: String(error?.message ?? error) });
  }
}

async function inPage() {
  const base = new URL("./", location.href);
  const options = await (await fetch(new URL("options.json", base))).json();
  const ort = await import(new URL("../ort/ort.wasm.bundle.min.mjs", base));
  ort.env.wasm.wasmPaths = { wasm: new URL("../ort/ort-wasm-simd-threaded.wasm", base).href };
  const io = {
    read: async (name) => {
      const answer = await fetch(new URL(name, base));
      if (!answer.ok) throw new Error(`cannot read ${name}: ${answer.status}`);
      return answer.arrayBuffer();
    },
    write: (name, bytes) => fetch(new URL(name, base), { method: "POST", body: bytes }),
    peak: () => 0, // a page cannot see the memory of its process
  };
  const next = async () => (await fetch(new URL("next", base))).text();
  const reply = (value) => fetch(new URL("reply", base), { method: "POST", body: JSON.stringify(value) });
  if (!self.crossOriginIsolated) await reply({ error: "the page is not cross-origin isolated: no threads, coarse clock" });
  else await serve(ort, io, options, next, reply);
}

async function inNode() {
  const { readFile, writeFile } = await import("node:fs/promises");
  const { createInterface } = await import("node:readline");
  const { pathToFileURL } = await import("node:url");
  const options = JSON.parse(await readFile("options.json", "utf8"));
  const ort = await import(pathToFileURL(`${options.ort}/ort.wasm.bundle.min.mjs`));
  ort.env.wasm.wasmBinary = (await readFile(`${options.ort}/ort-wasm-simd-threaded.wasm`)).buffer;
  const exact = (bytes) => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const io = {
    read: async (name) => exact(await readFile(name)),
    write: writeFile,
    peak: () => process.resourceUsage().maxRSS * 1024,
  };
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const next = async () => (await lines.next()).value;
  const reply = (value) => new Promise((done) => process.stdout.write(JSON.stringify(value) + "\n", done));
  process.stdin.on("end", () => process.exit(0)); // whoever asked is gone
  await serve(ort, io, options, next, reply);
  process.exit(0);
}

if (typeof window === "undefined") await inNode();
else await inPage();
