// A network in onnxruntime-web: what it answers and how long it takes.

const WARM_UP_MS = 500; // the engine compiles twice; the better code comes some hundred ms later
const ROUNDS = 21;
const FEWEST_ROUNDS = 5;
const MOST_MS = 3000;
const CLOCK_STEPS = 50; // a sample lasts so many steps of the clock: at most 2 % of it is rounding

export class Network {
  // name is "original" or "compressed"; bytes are those of the file.
  constructor(ort, session, name, bytes) {
    Object.assign(this, { ort, session, name, bytes, warm: false });
  }

  static async load(ort, model, name) {
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 3 };
    const bytes = model.length;
    return new Network(ort, await ort.InferenceSession.create(model, options), name, bytes);
  }

  feeds({ input, image }) {
    const { channels, height, width } = image;
    return { [this.session.inputNames[0]]: new this.ort.Tensor("float32", input, [1, channels, height, width]) };
  }

  // The probability of each class.
  async classify(prepared) {
    const outputs = await this.session.run(this.feeds(prepared));
    return probabilities(outputs[this.session.outputNames[0]].data);
  }

  // Milliseconds of one inference, from `inner` in a row.
  async time(feeds, inner) {
    const start = performance.now();
    for (let i = 0; i < inner; i++) await this.session.run(feeds);
    return (performance.now() - start) / inner;
  }

  release() {
    return this.session.release();
  }
}

// Samples of each network in ms, {samples, inner} each: in turns, so that what disturbs one disturbs the other too.
export async function measure(networks, prepared) {
  const plans = [];
  for (const network of networks) plans.push(await warmUp(network, prepared));
  const start = performance.now();
  for (let round = 0; round < ROUNDS; round++) {
    if (round >= FEWEST_ROUNDS && performance.now() - start > MOST_MS) break;
    const turn = round % 2 ? [...plans].reverse() : plans;
    for (const { network, feeds, inner, samples } of turn) samples.push(await network.time(feeds, inner));
    await new Promise((done) => setTimeout(done)); // lets the page answer
  }
  return plans.map(({ inner, samples }) => ({ inner, samples }));
}

async function warmUp(network, prepared) {
  const feeds = network.feeds(prepared);
  const start = performance.now();
  let fastest = Infinity;
  do fastest = Math.min(fastest, await network.time(feeds, 4));
  while (!network.warm && performance.now() - start < WARM_UP_MS);
  network.warm = true;
  const inner = Math.max(1, Math.ceil((CLOCK_STEPS * clockStep()) / Math.max(fastest, 0.01)));
  return { network, feeds, inner, samples: [] };
}

// Browsers round their clock: to 0.005 ms on isolated pages, to 0.1 ms and more on others.
function clockStep() {
  const start = performance.now();
  let now = start;
  while (now === start) now = performance.now();
  return Math.max(now - start, globalThis.crossOriginIsolated ? 0.005 : 0.1);
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// The classes with the largest probabilities, as [index, probability].
export function top(shares, count) {
  return [...shares.entries()].sort((a, b) => b[1] - a[1]).slice(0, count);
}

// Softmax, unless the network has done that itself.
function probabilities(values) {
  const numbers = Array.from(values);
  const sum = numbers.reduce((total, value) => total + value, 0);
  if (Math.abs(sum - 1) < 1e-3 && numbers.every((value) => value >= 0)) return numbers;
  const largest = numbers.reduce((most, value) => Math.max(most, value), -Infinity);
  const powers = numbers.map((value) => Math.exp(value - largest));
  const total = powers.reduce((all, value) => all + value, 0);
  return powers.map((value) => value / total);
}
