// What the page shows. Names come from files that nobody vouches for: they are set as text, never as HTML.

import { top } from "./network.mjs";

const SHOWN_CLASSES = 5;

export const byId = (id) => document.getElementById(id);

// An element with text or other elements in it.
export function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

export function status(words) {
  byId("status").textContent = words;
}

export function showProblem(error) {
  byId("error").hidden = error === null;
  byId("error").textContent = error?.message ?? "";
  if (error) status("");
}

export function showFacts({ bundle, networks, vouched, folder, threads }) {
  const { manifest, digest, origin } = bundle;
  const [first, last] = [networks[0], networks.at(-1)];
  const name = manifest.provenance?.source?.name ?? "The network";
  const smaller = first === last ? "" : `, ${times(first.bytes / last.bytes)} smaller than the original beside it`;
  byId("title").textContent = `${name}, compressed`;
  document.title = `${name}, compressed`;
  byId("lead").textContent = `Runs in this browser in ${size(last.bytes)}${smaller}. No image leaves this device.`;
  const source = vouched === null ? null
    : vouched ? "what the bundle was made from" : "not the file that the bundle was made from";
  const cost = manifest.evidence?.cost;
  const facts = [
    origin ? ["digest", `${digest}: as expected`, "good"]
      : ["digest", `${digest}: the files belong together; who made them is not known`],
    ["compressed model", `${size(last.bytes)}, ${manifest.precision}, sha256 as the manifest says`],
    first !== last && ["original", source ? `${size(first.bytes)}, ${source}` : size(first.bytes)],
    cost?.after && ["multiply-adds", `${count(cost.before.macs)} before, ${count(cost.after.macs)} after`],
    ["threads", threadWords(threads)],
    folder && ["what was done", make("a", { href: `${folder}report.html` }, "the export's report")],
  ];
  const terms = facts.filter(Boolean).flatMap(([term, value, tone = ""]) =>
    [make("dt", {}, term), make("dd", { className: tone }, value)]);
  byId("facts").replaceChildren(...terms);
}

function threadWords(threads) {
  if (!crossOriginIsolated) return "1 (this server does not send the headers that allow more)";
  const more = Math.min(4, navigator.hardwareConcurrency);
  if (threads > 1 || more < 2) return String(threads);
  return make("span", {}, "1, ", make("a", { href: `?threads=${more}` }, `try ${more}`));
}

// The pixels that the network sees.
export function showSeen({ width, height, channels, data }, what) {
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let colour = 0; colour < 3; colour++) pixels.data[4 * i + colour] = data[i * channels + (colour % channels)];
    pixels.data[4 * i + 3] = 255;
  }
  Object.assign(byId("seen"), { width, height }).getContext("2d").putImageData(pixels, 0, 0);
  byId("seen-words").textContent = `What the network sees of ${what}: ${width}x${height} pixels`;
  byId("seen-figure").hidden = false;
}

// A card for each network, with its likeliest classes.
export function showModels({ networks, classes }, shares, latencies = null) {
  const cards = networks.map(({ name }, index) =>
    make("article", { className: `model ${name}` },
      make("h3", {}, name === "original" ? "Original" : "Compressed"),
      make("p", { className: "latency" }, latencies ? `${milliseconds(latencies[index])} ms` : "\u2026"),
      make("ol", {}, ...top(shares[index], SHOWN_CLASSES).map((one) => bar(one, classes)))));
  byId("models").replaceChildren(...cards);
  byId("result").hidden = false;
}

function bar([index, share], classes) {
  const drawn = make("span", { className: "bar" });
  drawn.style.setProperty("--share", share);
  return make("li", {}, make("span", {}, className(classes, index)), make("span", {}, percent(share)), drawn);
}

// Whether both agree, and how fast. A verdict that stays is not spoken again for every frame.
export function showVerdict({ networks, classes }, shares, latencies, how) {
  const answers = shares.map((one) => top(one, 1)[0][0]);
  const said = className(classes, answers.at(-1));
  let words = `${capital(said)}, in ${milliseconds(latencies.at(-1))} ms.`;
  if (networks.length > 1) {
    const agree = answers[0] === answers[1] ? `Both say ${said}` : `${className(classes, answers[0])} became ${said}`;
    words = `${capital(agree)}. ${speed(latencies[0] / latencies[1])}.`;
  }
  if (byId("verdict").textContent !== words) byId("verdict").textContent = words;
  byId("how").textContent = `Milliseconds for one image, scaling not included: ${how}.`;
}

function speed(ratio) {
  if (Math.abs(ratio - 1) < 0.02) return "The compressed network takes as long as the original here";
  const words = `${times(ratio)} as fast here`;
  return ratio > 1 ? `The compressed network is ${words}` : `The compressed network is SLOWER, ${words}`;
}

// One row an image; those on which the networks differ stand out and say so.
export function showAll({ networks, classes }, rows) {
  byId("several-head").replaceChildren(...["image", ...networks.map(({ name }) => name)].map((name) =>
    make("th", { scope: "col" }, name)));
  let agreed = 0;
  const made = rows.map(({ name, shares }) => {
    const answers = shares.map((one) => top(one, 1)[0]);
    const same = answers.every(([index]) => index === answers[0][0]);
    agreed += same;
    const cells = answers.map(([index, share]) => {
      const cell = make("td", {}, `${className(classes, index)} ${percent(share)}${same ? "" : " (differs)"}`);
      Object.assign(cell.dataset, { class: index, share });
      return cell;
    });
    return make("tr", { className: same ? "" : "differs" }, make("th", { scope: "row" }, name), ...cells);
  });
  byId("several-body").replaceChildren(...made);
  byId("agreement").textContent = networks.length > 1 ? `Same class on ${agreed} of ${rows.length} images.` : "";
  byId("several").hidden = false;
}

const className = (classes, index) => classes?.[index] ?? `class ${index}`;
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const times = (ratio) => `${ratio.toFixed(2)} times`;
const milliseconds = (value) => value.toPrecision(3);
const size = (bytes) => (bytes >= 1e6 ? `${(bytes / 1e6).toPrecision(3)} MB` : `${(bytes / 1e3).toPrecision(3)} kB`);
const count = (number) => (number >= 1e9 ? `${(number / 1e9).toPrecision(3)} G` : `${(number / 1e6).toPrecision(3)} M`);
