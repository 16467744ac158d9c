// A bundle, read from wherever its files are, and refused where they are not what its manifest says.
// docs/reference/bundle.md describes the manifest. Nothing that has not been checked is handed to onnxruntime.

const MOST_MANIFEST_BYTES = 8 * 2 ** 20;

// `read(path)` gives a Uint8Array, or null where there is no such file. `digest` is the sha256 that the manifest must
// have, or null. Returns {manifest, model, digest, origin}: origin says whether a digest vouched for the manifest.
export async function readBundle(read, digest = null) {
  const written = await read("manifest.json");
  if (written === null) throw new Error("There is no manifest.json: choose it together with the model.");
  if (written.length > MOST_MANIFEST_BYTES) throw new Error("manifest.json is larger than any manifest is.");
  const found = await sha256(written);
  if (digest !== null && found !== digest.toLowerCase()) {
    throw new Error(`manifest.json has the digest ${found}, not ${digest}: this is another bundle.`);
  }
  const manifest = parse(written);
  const model = await checked(read, manifest, manifest.model);
  return { manifest, model, digest: found, origin: digest !== null };
}

// One listed file's bytes. Throws where it is missing or differs from the manifest.
async function checked(read, manifest, path) {
  const listed = Object.hasOwn(manifest.files ?? {}, path) ? manifest.files[path] : null;
  if (listed === null) throw new Error(`manifest.json does not list ${path}.`);
  const bytes = await read(path);
  if (bytes === null) throw new Error(`${path} is missing: choose it together with manifest.json.`);
  await requireDigest(bytes, listed, path);
  return bytes;
}

// Throws where bytes differ from {sha256, bytes}.
export async function requireDigest(bytes, expected, name) {
  if (bytes.length !== expected.bytes || (await sha256(bytes)) !== expected.sha256) {
    throw new Error(`${name} is not the file that the manifest describes: its digest differs. It was changed or damaged.`);
  }
}

export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new Error("Browsers compute digests on https or localhost only: open this page there.");
  }
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parse(written) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(written));
  } catch (error) {
    throw new Error(`manifest.json is not JSON (${error.message}).`);
  }
  if (manifest?.format !== "trp-bundle" || manifest.version !== 1) {
    throw new Error("manifest.json is not that of a bundle of version 1.");
  }
  requireImages(manifest);
  return manifest;
}

// What this page can feed: one input of floats (N, C, H, W) that pixels can be turned into.
function requireImages({ inputs, outputs, preprocessing }) {
  if (inputs?.length !== 1 || !outputs?.length) throw new Error("This page feeds models of one input only.");
  const [{ shape, type }] = inputs;
  if (shape.length !== 4 || type !== "float32") {
    const sizes = shape.map((size) => size ?? "?").join(", ");
    throw new Error(`This page feeds images of float32; the model wants ${type} (${sizes}).`);
  }
  if (preprocessing === null) throw new Error("The bundle does not say how pixels become inputs (preprocessing).");
  const { interpolation, layout, channels, resize } = preprocessing;
  if (interpolation !== "bilinear" || layout !== "NCHW" || !["RGB", "BGR", "L"].includes(channels)) {
    throw new Error(`This page does not know ${interpolation} scaling to ${layout} of ${channels}.`);
  }
  if (typeof resize === "string" && resize !== "cover") throw new Error(`This page cannot resize to ${resize}.`);
}

// Readers: from the site, and from files that the user chose or dropped.
export function fromSite(folder) {
  return async (path) => {
    const answer = await fetch(new URL(path, folder));
    return answer.ok ? new Uint8Array(await answer.arrayBuffer()) : null;
  };
}

// `files` have a path each, below one common folder or none.
export function fromFiles(files) {
  const manifest = files.find(({ path }) => path.split("/").pop() === "manifest.json");
  const folder = manifest ? manifest.path.slice(0, -"manifest.json".length) : "";
  return async (path) => {
    const found = files.find((one) => one.path === folder + path);
    return found ? new Uint8Array(await found.file.arrayBuffer()) : null;
  };
}
