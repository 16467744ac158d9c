// Where images come from: a file, the camera, a drawing. Each gives ImageData, unscaled.

// Decoded without colour management, as Pillow does. What is transparent becomes white.
export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name} is not an image that this browser can read.`);
  }
  return pixelsOf(bitmap, bitmap.width, bitmap.height);
}

export function pixelsOf(drawable, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(drawable, 0, 0);
  return context.getImageData(0, 0, width, height);
}

export class Camera {
  constructor(video) {
    this.video = video;
  }

  get running() {
    return this.video.srcObject !== null;
  }

  async start() {
    if (!navigator.mediaDevices) throw new Error("Browsers allow the camera on https or localhost only.");
    const video = { facingMode: "environment", width: { ideal: 640 } };
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      throw new Error(`The camera cannot be used: ${error.message}.`);
    }
    await this.video.play();
  }

  stop() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }

  frame() {
    return pixelsOf(this.video, this.video.videoWidth, this.video.videoHeight);
  }
}

// A board to draw on; calls `drawn` when a stroke ends.
export class Board {
  constructor(canvas, pen, penWidth, drawn) {
    Object.assign(this, { canvas, pen, penWidth, drawn, lowered: false });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.at = [canvas.width / 2, canvas.height / 2];
    this.fill("#ffffff");
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.up());
    canvas.addEventListener("pointercancel", () => this.up());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  fill(colour = this.pen.value) {
    this.context.fillStyle = colour;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  pixels() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.lowered = true;
    this.at = this.place(event);
    this.lineTo(this.at);
  }

  move(event) {
    if (this.lowered && event.buttons) this.lineTo(this.place(event));
  }

  up() {
    if (this.lowered) this.drawn();
    this.lowered = false;
  }

  key(event) {
    const [x, y] = this.at;
    const step = 8;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === " ") {
      if (this.lowered) this.up();
      else this.lowered = true;
    } else if (!(event.key in moves)) return;
    event.preventDefault(); // keeps the page from scrolling
    const [dx, dy] = moves[event.key] ?? [0, 0];
    const to = [Math.min(Math.max(x + dx, 0), this.canvas.width), Math.min(Math.max(y + dy, 0), this.canvas.height)];
    if (this.lowered) this.lineTo(to);
    this.at = to;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  lineTo(to) {
    const style = { strokeStyle: this.pen.value, lineWidth: Number(this.penWidth.value), lineCap: "round" };
    Object.assign(this.context, style);
    this.context.beginPath();
    this.context.moveTo(...this.at);
    this.context.lineTo(...to);
    this.context.stroke();
    this.at = to;
  }
}
