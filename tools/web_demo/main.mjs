// The page: a bundle is checked and loaded, then whatever image comes is classified by both networks.

import { fromFiles, fromSite, readBundle, requireDigest, sha256 } from "./bundle.mjs";
import { Network, measure, median } from "./network.mjs";
import { prepare } from "./preprocess.mjs";
import { Board, Camera, fromFile } from "./sources.mjs";
import { byId, showAll, showFacts, showModels, showProblem, showSeen, showVerdict, status } from "./view.mjs";

const SITE = new URL("./", import.meta.url);
const WINDOW = 30; // frames of the camera that a shown latency is the median of

const state = { loaded: null, busy: false, next: null };
const camera = new Camera(byId("video"));
const board = new Board(byId("board"), byId("pen"), byId("pen-width"), () => attempt(classifyDrawing));

async function loadRuntime() {
  const ort = await import(new URL("ort/ort.wasm.bundle.min.mjs", SITE));
  const asked = Number(new URLSearchParams(location.search).get("threads") ?? 1);
  ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", SITE).href };
  ort.env.wasm.numThreads = crossOriginIsolated && asked > 1 ? Math.min(asked, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  return ort;
}
const runtime = loadRuntime();

// The bundle and the original that the page was built with.
async function loadSite() {
  const site = JSON.parse(new TextDecoder().decode(await fromSite(SITE)("site.json")));
  const bundle = await readBundle(fromSite(new URL("bundle/", SITE)), site.digest);
  if (!site.original) return use(bundle, null, { folder: "bundle/" });
  const original = await fromSite(SITE)(site.original.path);
  if (original === null) throw new Error(`${site.original.path} is missing from this site.`);
  await requireDigest(original, site.original, site.original.path);
  return use(bundle, original, { folder: "bundle/", madeFrom: site.original.made_from });
}

async function loadChosen(files, original, digest) {
  const bundle = await readBundle(fromFiles(files), digest || null);
  return use(bundle, original ? new Uint8Array(await original.arrayBuffer()) : null);
}

// `madeFrom` is the sha256 of the file that the original was made from, its own where it is not given.
async function use(bundle, original, { folder = null, madeFrom = null } = {}) {
  const ort = await runtime;
  const networks = original ? [await Network.load(ort, original, "original")] : [];
  networks.push(await Network.load(ort, bundle.model, "compressed"));
  for (const network of state.loaded?.networks ?? []) await network.release();
  state.loaded = { bundle, networks, classes: bundle.manifest.classes };
  const vouched = original ? isSource(bundle.manifest, madeFrom ?? (await sha256(original))) : null;
  showFacts({ bundle, networks, vouched, folder, threads: ort.env.wasm.numThreads });
  byId("images").disabled = false;
  status("Ready.");
}

// Whether a file is one of those that the bundle was made from.
function isSource(manifest, digest) {
  return Object.values(manifest.provenance?.source?.files ?? {}).some((file) => file.sha256 === digest);
}

// One image: answers at once, then times.
async function classify(rgba, what) {
  const { networks, bundle } = state.loaded;
  const prepared = prepare(rgba, bundle.manifest.preprocessing);
  const shares = await classifyWith(networks, prepared);
  showSeen(prepared.image, what);
  showModels(state.loaded, shares);
  status("Timing");
  const timed = await measure(networks, prepared);
  const latencies = timed.map(({ samples }) => median(samples));
  showModels(state.loaded, shares, latencies);
  showVerdict(state.loaded, shares, latencies, `median of ${timed[0].samples.length} samples, taken in turns`);
  status("Done.");
}

async function classifyWith(networks, prepared) {
  const shares = [];
  for (const network of networks) shares.push(await network.classify(prepared));
  return shares;
}

async function classifyFiles(files) {
  byId("several").hidden = true;
  await classify(await fromFile(files[0]), files[0].name);
  if (files.length < 2) return;
  const rows = [];
  for (const [index, file] of files.entries()) {
    status(`Image ${index + 1} of ${files.length}`);
    const prepared = prepare(await fromFile(file), state.loaded.bundle.manifest.preprocessing);
    rows.push({ name: file.name, shares: await classifyWith(state.loaded.networks, prepared) });
    await new Promise((done) => setTimeout(done)); // lets the page answer
  }
  showAll(state.loaded, rows);
  status("Done.");
}

async function classifyDrawing() {
  byId("several").hidden = true;
  await classify(board.pixels(), "the drawing");
}

// Frame after frame until the camera is stopped; a latency is the median over the last frames.
async function classifyCamera() {
  byId("several").hidden = true;
  const { networks, bundle } = state.loaded;
  const times = networks.map(() => []);
  while (camera.running) {
    await new Promise((done) => requestAnimationFrame(done));
    if (!camera.running || !camera.video.videoWidth) continue;
    const prepared = prepare(camera.frame(), bundle.manifest.preprocessing);
    const shares = [];
    for (const [index, network] of networks.entries()) {
      const start = performance.now();
      shares.push(await network.classify(prepared));
      times[index] = [...times[index], performance.now() - start].slice(-WINDOW);
    }
    const latencies = times.map(median);
    showSeen(prepared.image, "the camera");
    showModels(state.loaded, shares, latencies);
    showVerdict(state.loaded, shares, latencies, `median of the last ${times[0].length} frames`);
  }
}

// One task at a time; of those that come meanwhile the latest is kept. What goes wrong is told, and the page stays
// usable.
async function attempt(task) {
  if (camera.running) stopCamera();
  state.next = task;
  if (state.busy) return;
  state.busy = true;
  while (state.next) {
    const current = state.next;
    state.next = null;
    showProblem(null);
    await current().catch(showProblem);
    document.body.dataset.finished = String(Number(document.body.dataset.finished ?? 0) + 1);
  }
  state.busy = false;
}

function stopCamera() {
  camera.stop();
  byId("camera-switch").textContent = "Start the camera";
}

async function runCamera() {
  if (!state.loaded) throw new Error("No bundle is loaded yet.");
  await camera.start();
  byId("camera-switch").textContent = "Stop the camera";
  try {
    await classifyCamera();
  } finally {
    stopCamera();
  }
}

for (const choice of document.querySelectorAll('[name="source"]')) {
  choice.addEventListener("change", () => {
    stopCamera();
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = panel.id !== choice.value;
  });
}
byId("images").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  if (files.length) attempt(() => classifyFiles(files));
});
byId("camera-switch").addEventListener("click", () => (camera.running ? stopCamera() : attempt(runCamera)));
byId("fill").addEventListener("click", () => board.fill());
byId("classify").addEventListener("click", () => attempt(classifyDrawing));
byId("another").addEventListener("submit", (event) => {
  event.preventDefault();
  const files = [...byId("bundle-files").files].map((file) => ({ path: file.name, file }));
  const [original] = byId("original-file").files;
  attempt(() => loadChosen(files, original, byId("digest").value.trim()));
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  attempt(() => takeDropped(entries));
});

// Images are classified; a folder or files with a manifest.json among them are a bundle.
async function takeDropped(entries) {
  const files = (await Promise.all(entries.map(filesOf))).flat();
  const isBundle = files.some(({ path }) => path.split("/").pop() === "manifest.json");
  if (isBundle) await loadChosen(files, null, byId("digest").value.trim());
  else if (files.length) await classifyFiles(files.map(({ file }) => file));
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [{ path: entry.fullPath, file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (let part = null; part?.length !== 0; ) {
    part = await new Promise((done, failed) => reader.readEntries(done, failed));
    found.push(...part);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}

await attempt(loadSite);
