// From pixels to the input of a network, bit for bit as trp_export/inputs/images.py does it with Pillow and numpy:
// a browser's own scaling gives other pixels, so scaling is done here.
//
// An image is {width, height, channels, data}, data uint8 with the channels of a pixel side by side.

// Pillow keeps weights as whole numbers with so many bits behind the point.
const WEIGHT_BITS = 22;

// The input of the network, Float32Array (C, H, W), and the image that it was made from. `preprocessing` is the
// manifest's, see docs/reference/bundle.md.
export function prepare(rgba, preprocessing) {
  const { resize, crop, channels } = preprocessing;
  let image = channels === "L" ? toGrey(rgba) : toRgb(rgba, channels === "BGR");
  if (resize === "cover") image = scaled(image, Math.max(crop[0] / image.height, crop[1] / image.width));
  else if (resize !== null) image = scaled(image, resize / Math.min(image.height, image.width));
  if (crop !== null) image = cut(image, ...crop);
  return { input: normalised(image, preprocessing), image };
}

function toRgb({ width, height, data }, blueFirst) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = data[from + (blueFirst ? 2 : 0)];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + (blueFirst ? 0 : 2)];
  }
  return { width, height, channels: 3, data: rgb };
}

// Pillow's weights of red, green and blue, in units of 2 ** -16.
function toGrey({ width, height, data }) {
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return { width, height, channels: 1, data: grey };
}

function scaled(image, scale) {
  const width = Math.max(1, roundHalfEven(image.width * scale));
  const height = Math.max(1, roundHalfEven(image.height * scale));
  return scaledDown(scaledAcross(image, width), height);
}

// As Python's round.
function roundHalfEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

function scaledAcross(image, width) {
  if (width === image.width) return image;
  const { height, channels, data } = image;
  const result = new Uint8Array(width * height * channels);
  const taps = bilinearTaps(image.width, width);
  for (let y = 0, to = 0; y < height; y++) {
    const row = y * image.width * channels;
    for (const { first, weights } of taps) {
      for (let channel = 0; channel < channels; channel++, to++) {
        result[to] = weightedSum(data, row + first * channels + channel, channels, weights);
      }
    }
  }
  return { width, height, channels, data: result };
}

function scaledDown(image, height) {
  if (height === image.height) return image;
  const { width, channels, data } = image;
  const stride = width * channels;
  const result = new Uint8Array(height * stride);
  let to = 0;
  for (const { first, weights } of bilinearTaps(image.height, height)) {
    for (let x = 0; x < stride; x++, to++) result[to] = weightedSum(data, first * stride + x, stride, weights);
  }
  return { width, height, channels, data: result };
}

function weightedSum(data, start, step, weights) {
  let sum = 1 << (WEIGHT_BITS - 1);
  for (let i = 0, at = start; i < weights.length; i++, at += step) sum += data[at] * weights[i];
  return Math.min(255, sum >> WEIGHT_BITS);
}

// For each pixel of the result, the first pixel that counts and the weights from there on. The triangle is as wide
// as two pixels of whichever of the two images has the larger ones.
function bilinearTaps(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const stop = Math.min(from, Math.trunc(centre + support + 0.5));
    const triangle = [];
    for (let at = first; at < stop; at++) {
      triangle.push(Math.max(0, 1 - Math.abs((at - centre + 0.5) * (1 / support))));
    }
    const total = triangle.reduce((sum, weight) => sum + weight, 0);
    const weights = triangle.map((weight) => Math.trunc(0.5 + (weight / total) * (1 << WEIGHT_BITS)));
    return { first, weights };
  });
}

function cut(image, height, width) {
  if (image.height < height || image.width < width) {
    throw new Error(`The image has ${image.width}x${image.height} pixels, fewer than the ${width}x${height} wanted.`);
  }
  const { channels } = image;
  const left = Math.floor((image.width - width) / 2);
  const top = Math.floor((image.height - height) / 2);
  const data = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(start, start + width * channels), y * width * channels);
  }
  return { width, height, channels, data };
}

// In single precision at each step, as numpy does it: a table of the 256 values that each channel can take.
function normalised({ width, height, channels, data }, { scale, mean, std }) {
  // A scale of 1/255 divides, any other multiplies: the two round differently.
  const scaled = scale === 1 / 255 ? (value) => value / 255 : (value) => value * Math.fround(scale);
  const size = width * height;
  const input = new Float32Array(channels * size);
  for (let channel = 0; channel < channels; channel++) {
    const table = Float32Array.from({ length: 256 }, (_, value) =>
      Math.fround(Math.fround(scaled(value)) - Math.fround(mean[channel])) / Math.fround(std[channel]));
    for (let i = 0; i < size; i++) input[channel * size + i] = table[data[i * channels + channel]];
  }
  return input;
}
