// Open the model of this bundle, after checking that it is the expected one.
//
//   import * as ort from "onnxruntime-web";
//   import { load, prepare } from "./load.mjs";
//   const { session, manifest } = await load(ort, "path/to/bundle/", "...");  // trp-export printed the digest
//   const pixels = canvas.getContext("2d").getImageData(0, 0, width, height); // scaled and cut to the input's size
//   const input = prepare(ort, pixels, manifest);
//   const outputs = await session.run({ [manifest.inputs[0].name]: input });
//
// Browsers compute digests on https and localhost only. In Node.js pass `read`, a function from a file's name to its
// bytes as Uint8Array.

const MOST_MANIFEST_BYTES = 8 * 2 ** 20;
// By the type of the input.
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  int32: Int32Array,
};

// {session, manifest}. Throws if any byte of either was changed. Warns where onnxruntime is not of the version that the
// bundle was measured with.
export async function load(ort, folder, digest, { read = (name) => fetchBytes(folder, name), ...options } = {}) {
  const written = await read("manifest.json");
  if (written.length > MOST_MANIFEST_BYTES || (await sha256(written)) !== digest.trim().toLowerCase()) {
    throw new Error("manifest.json does not have this digest");
  }
  const manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(written));
  if (manifest.format !== "trp-bundle" || manifest.version !== 1) throw new Error("not a bundle of version 1");
  warnOfOtherVersion(manifest, ort.env.versions?.web ?? ort.env.versions?.node ?? ort.env.versions?.common);
  const model = await checked(read, manifest, manifest.model);
  const data = `${manifest.model}.data`; // weights above 2 GB are in a separate file
  if (Object.hasOwn(manifest.files, data)) {
    options.externalData = [{ path: data, data: await checked(read, manifest, data) }];
  }
  return { session: await ort.InferenceSession.create(model, options), manifest };
}

// The input tensor (one image, in the input's type) from ImageData, {data: RGBA bytes, width, height}, in its size.
export function prepare(ort, { data, width, height }, manifest) {
  const steps = manifest.preprocessing;
  if (steps === null) throw new Error("this bundle does not say how images are prepared");
  const { type } = manifest.inputs[0];
  if (!(type in ARRAYS)) throw new Error(`prepare makes ${Object.keys(ARRAYS).join(", ")}; this model takes ${type}`);
  const channels = steps.mean.length;
  const area = width * height;
  const channelsFirst = steps.layout.endsWith("CHW");
  const values = new ARRAYS[type](channels * area);
  const rounded = type.startsWith("float") ? (value) => value : Math.round;
  for (let channel = 0; channel < channels; channel++) {
    for (let pixel = 0; pixel < area; pixel++) {
      const at = 4 * pixel;
      const colour = steps.channels === "BGR" ? 2 - channel : channel;
      const value = channels === 1 ? grey(data[at], data[at + 1], data[at + 2]) : data[at + colour];
      const to = channelsFirst ? channel * area + pixel : pixel * channels + channel;
      values[to] = rounded((value * steps.scale - steps.mean[channel]) / steps.std[channel]);
    }
  }
  const shape = channelsFirst ? [channels, height, width] : [height, width, channels];
  return new ort.Tensor(type, values, steps.layout.startsWith("N") ? [1, ...shape] : shape);
}

// The version of onnxruntime that the bundle's latency was measured with, or else all other figures.
export function measuredWith({ evidence, provenance }) {
  return evidence.latency ? evidence.latency.environment.onnxruntime : provenance.versions?.onnxruntime;
}

function warnOfOtherVersion(manifest, version) {
  const measured = measuredWith(manifest);
  const minor = (text) => text.split(".").slice(0, 2).join(".");
  if (!measured || !version || minor(measured) === minor(version)) return;
  console.warn(
    `this bundle was measured with onnxruntime ${measured}; this is ${version}, which may differ in speed and rounding`,
  );
}

async function checked(read, manifest, name) {
  if (!Object.hasOwn(manifest.files, name)) throw new Error(`manifest.json does not list ${name}`);
  const bytes = await read(name);
  const listed = manifest.files[name];
  if (bytes.length !== listed.bytes || (await sha256(bytes)) !== listed.sha256) {
    throw new Error(`${name} is not the file that the manifest describes`);
  }
  return bytes;
}

async function fetchBytes(folder, name) {
  const answer = await fetch(new URL(name, new URL(folder, globalThis.location?.href)));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function sha256(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ITU-R 601, like Pillow.
function grey(red, green, blue) {
  return Math.floor((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 0x10000);
}
