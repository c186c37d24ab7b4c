// A photo with one model's answer over it.

const LEAST_SIDE = 960; // a smaller photo is enlarged by a whole factor, so that outlines are thin
const WHITE = 0xffffffff;
const MARK = 0xffff00ff; // magenta, and
const MARK_STRIPE = 0xff000000; // black beside it: seen on every colour

export class Pane {
  /** figure: where it stands. onHover(id or 0, event), onPick(id or 0): of the segment under the pointer. */
  constructor(figure, onHover, onPick) {
    this.figure = figure;
    this.picture = element("div", "picture");
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.labels = element("div", "labels");
    this.labels.setAttribute("aria-hidden", "true");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.wait = element("div", "wait");
    this.caption = element("figcaption");
    this.picture.append(this.canvas, this.labels, this.tip, this.wait);
    figure.append(this.picture, this.caption);
    this.canvas.addEventListener("pointermove", (event) => onHover(this.idAt(event), event));
    this.canvas.addEventListener("pointerdown", (event) => onHover(this.idAt(event), event));
    this.canvas.addEventListener("pointerleave", (event) => onHover(0, event));
    this.canvas.addEventListener("click", (event) => onPick(this.idAt(event)));
    new ResizeObserver(() => this.placeLabels()).observe(this.canvas);
    this.clear();
  }

  clear() {
    this.image = this.answer = this.ids = this.edges = this.mask = null;
    this.view = null;
  }

  /** image: decoded, of the view's size. */
  setPhoto(image, name) {
    this.clear();
    const side = Math.max(image.naturalWidth, image.naturalHeight);
    this.image = image;
    this.name = name;
    this.factor = Math.max(1, Math.ceil(LEAST_SIDE / side));
    this.canvas.width = image.naturalWidth * this.factor;
    this.canvas.height = image.naturalHeight * this.factor;
    this.canvas.setAttribute("aria-label", name);
  }

  setAnswer(answer) {
    this.answer = answer;
    this.mask = null;
    this.byId = new Map((answer?.segments ?? []).map((segment) => [segment.id, segment]));
    this.ids = answer && enlarge(answer.ids, answer.map, this.factor);
    this.edges = answer && findEdges(this.ids, this.canvas.width, this.canvas.height);
    const words = answer ? `${this.name}: ${answer.words} (${answer.segments.length} segments)` : this.name;
    this.canvas.setAttribute("aria-label", words);
  }

  setDifference(found) {
    this.mask = found && enlarge(found.mask, found.map, this.factor);
  }

  /** view: {segments, outlines, labels, difference, opacity, hidden: Set of category ids, lit: id or 0} */
  draw(view) {
    this.view = view;
    if (!this.image) return;
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = this.factor < 3;
    context.drawImage(this.image, 0, 0, width, height);
    if (this.answer) context.drawImage(this.overlay(view), 0, 0);
    this.placeLabels();
  }

  isShown(segment) {
    return !this.view.hidden.has(segment.category_id);
  }

  overlay(view) {
    const { width, height } = this.canvas;
    const pixels = new Uint32Array(width * height);
    const palette = new Uint32Array(256);
    const outline = new Uint32Array(256);
    for (const segment of this.answer.segments) {
      if (!this.isShown(segment)) continue;
      const [red, green, blue] = segment.color;
      let share = view.segments ? view.opacity : 0;
      if (view.lit) share = segment.id === view.lit ? Math.max(0.35, Math.min(1, share + 0.2)) : share * 0.3;
      palette[segment.id] = ((Math.round(share * 255) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
      if (segment.id === view.lit || (view.outlines && !view.lit)) outline[segment.id] = WHITE;
      else if (view.outlines) outline[segment.id] = 0x60ffffff;
    }
    const { ids, edges } = this;
    for (let place = 0; place < pixels.length; place++) {
      const id = ids[place];
      pixels[place] = (edges[place] && outline[id]) || palette[id];
    }
    if (this.mask && view.difference) this.mark(pixels, width, height);
    const layer = new OffscreenCanvas(width, height);
    layer.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
    return layer;
  }

  mark(pixels, width, height) {
    const stripe = Math.max(2, Math.round(Math.max(width, height) / 320));
    for (let y = 0, place = 0; y < height; y++)
      for (let x = 0; x < width; x++, place++)
        if (this.mask[place]) pixels[place] = ((x + y) / stripe) & 1 ? MARK : MARK_STRIPE;
  }

  /** The id under the pointer; 0: void, or a class that is switched off. */
  idAt(event) {
    if (!this.ids || !this.view) return 0;
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height);
    if (x < 0 || y < 0 || x >= this.canvas.width || y >= this.canvas.height) return 0;
    const segment = this.byId.get(this.ids[y * this.canvas.width + x]);
    return segment && this.isShown(segment) ? segment.id : 0;
  }

  showTip(id, event) {
    const segment = this.byId?.get(id);
    this.tip.hidden = !segment;
    if (!segment) return;
    this.tip.replaceChildren(strong(segment.name), ...figures(segment, this.answer.size).map((words) => element("span", "", words)));
    const box = this.picture.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    const left = x + 16 + this.tip.offsetWidth > box.width ? x - 12 - this.tip.offsetWidth : x + 16;
    const top = y + 16 + this.tip.offsetHeight > box.height ? y - 12 - this.tip.offsetHeight : y + 16;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${Math.max(0, top)}px`;
  }

  /** Names on their segments, the largest first; one that would cover another is left out. */
  placeLabels() {
    this.labels.replaceChildren();
    if (!this.answer || !this.view?.labels) return;
    const { width, height } = this.labels.getBoundingClientRect();
    const placed = [];
    for (const { segment, x, y } of this.labelPoints()) {
      const label = element("span", "", labelOf(segment));
      label.style.backgroundColor = css(segment.color);
      label.style.color = textColor(segment.color);
      label.style.visibility = "hidden";
      this.labels.append(label);
      const box = { width: label.offsetWidth, height: label.offsetHeight };
      box.left = Math.min(Math.max(0, x * width - box.width / 2), Math.max(0, width - box.width));
      box.top = Math.min(Math.max(0, y * height - box.height / 2), Math.max(0, height - box.height));
      if (placed.some((other) => meet(box, other))) {
        label.remove();
        continue;
      }
      placed.push(box);
      label.style.left = `${box.left}px`;
      label.style.top = `${box.top}px`;
      label.style.visibility = "";
    }
  }

  /** Where labels go, 0 .. 1 of the picture's sides. */
  labelPoints() {
    const [height, width] = this.answer.size;
    return this.answer.segments
      .filter((segment) => segment.point && this.isShown(segment))
      .sort((a, b) => b.area - a.area)
      .map((segment) => ({ segment, x: (segment.point[0] + 0.5) / width, y: (segment.point[1] + 0.5) / height }));
  }
}

export const labelOf = (segment) => (segment.isthing ? `${segment.name} ${segment.score.toFixed(2)}` : segment.name);
export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

/** What is known of a segment beside its name: score (of things), area. */
export function figures(segment, [height, width]) {
  const share = ((100 * segment.area) / (height * width)).toFixed(1);
  const area = `${segment.area.toLocaleString("en")} px, ${share} %`;
  return segment.isthing ? [`score ${segment.score.toFixed(2)}`, area] : ["stuff", area];
}

/** Black or white, whichever is easier to read: its contrast is 4.58 at least. */
export function textColor(color) {
  const [red, green, blue] = color.map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "black" : "white";
}

export function meet(a, b) {
  return a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const strong = (text) => element("strong", "", text);

function enlarge(map, { height, width }, factor) {
  if (factor === 1) return map;
  const wide = new Uint8Array(map.length * factor * factor);
  for (let y = 0; y < height * factor; y++) {
    const row = Math.floor(y / factor) * width;
    const start = y * width * factor;
    for (let x = 0; x < width * factor; x++) wide[start + x] = map[row + Math.floor(x / factor)];
  }
  return wide;
}

/** Pixels on either side of a border between two segments. */
function findEdges(ids, width, height) {
  const edges = new Uint8Array(ids.length);
  const thickness = Math.max(1, Math.round(Math.min(width, height) / 900));
  for (let step = 1; step <= thickness; step++)
    for (let y = 0, place = 0; y < height; y++)
      for (let x = 0; x < width; x++, place++) {
        if (x >= step && ids[place] !== ids[place - step]) edges[place] = edges[place - step] = 1;
        if (y >= step && ids[place] !== ids[place - step * width]) edges[place] = edges[place - step * width] = 1;
      }
  return edges;
}
