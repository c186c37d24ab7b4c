// A photo with one model's answer over it.

import { classOf } from "./api.js";
import { css, element, figures, labelOf, placeLabels, textColor } from "./dom.js";
import { color32, enlarge, findEdges, paint, stripe } from "./maps.js";

const LEAST_SIDE = 960; // a smaller photo is enlarged by a whole factor, so that outlines are thin
const WHITE = [255, 255, 255];
const MARKS = [color32([255, 0, 255], 1), color32([0, 0, 0], 1)];
const DIM = 0.3; // what is left of the other segments' opacity beside one that is lit
const DRAG = 4; // px
const THIN = 8; // px, which a side has at least, whatever the other's length: what is thinner cannot be pointed at

export class Pane {
  /** onHover(x, y or null), onPick(x, y): 0 .. 1 of the picture's sides. onZoom(factor): asked for by wheel or keys. */
  constructor(figure, { onHover, onPick, onZoom, onScroll }) {
    this.figure = figure;
    this.frame = element("div", "frame");
    this.frame.setAttribute("role", "group");
    this.picture = element("div", "picture");
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.labels = element("div", "labels");
    this.labels.setAttribute("aria-hidden", "true");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.wait = element("div", "wait");
    this.caption = element("figcaption");
    this.picture.append(this.canvas, this.labels);
    this.frame.append(this.picture);
    const around = element("div", "around");
    around.append(this.frame, this.tip, this.wait);
    figure.append(around, this.caption);
    this.clear();
    this.#listen(onHover, onPick, onZoom, onScroll);
    new ResizeObserver(() => this.#placeLabels()).observe(this.canvas);
  }

  #listen(onHover, onPick, onZoom, onScroll) {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    let drag = null;
    let dragged = false;
    this.canvas.addEventListener("pointerdown", (event) => {
      dragged = false;
      if (event.pointerType === "mouse") drag = [event.clientX, event.clientY, this.frame.scrollLeft, this.frame.scrollTop];
      else onHover(...at(event));
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (drag && event.buttons & 1) {
        const [left, top] = [event.clientX - drag[0], event.clientY - drag[1]];
        dragged ||= Math.hypot(left, top) > DRAG;
        if (dragged) this.frame.scrollTo(drag[2] - left, drag[3] - top);
      }
      onHover(...at(event));
    });
    this.canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || onHover(null, null));
    this.canvas.addEventListener("click", (event) => dragged || onPick(...at(event)));
    this.canvas.addEventListener("dragstart", (event) => event.preventDefault());
    this.frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return; // which a pinch on a touchpad sets, too
      event.preventDefault();
      onZoom(Math.exp(-event.deltaY / 200));
    }, { passive: false });
    this.frame.addEventListener("keydown", (event) => {
      const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, "0": 0 }[event.key];
      if (factor === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      onZoom(factor);
    });
    this.frame.addEventListener("scroll", () => onScroll(this.frame.scrollLeft, this.frame.scrollTop));
  }

  clear() {
    this.image = this.answer = this.ids = this.edges = this.mask = this.view = null;
    this.byId = new Map();
    this.labels.replaceChildren();
    this.tip.hidden = true;
  }

  /** image: decoded, of the view's size. */
  setPhoto(image, name) {
    this.clear();
    this.image = image;
    this.name = name;
    this.factor = Math.max(1, Math.ceil(LEAST_SIDE / Math.max(image.naturalWidth, image.naturalHeight)));
    this.canvas.width = image.naturalWidth * this.factor;
    this.canvas.height = image.naturalHeight * this.factor;
    this.pixels = new ImageData(this.canvas.width, this.canvas.height);
    this.layer = new OffscreenCanvas(this.canvas.width, this.canvas.height);
    this.setAnswer(null);
  }

  setAnswer(answer) {
    this.answer = answer;
    this.mask = null;
    this.tip.hidden = true;
    this.byId = new Map((answer?.segments ?? []).map((segment) => [segment.id, segment]));
    this.ids = answer && enlarge(answer.ids, answer.map, this.factor);
    this.edges = answer && findEdges(this.ids, this.canvas.width, this.canvas.height);
    const words = answer ? `${this.name}: ${answer.words} (${answer.segments.length} segments)` : this.name;
    this.canvas.setAttribute("aria-label", words ?? "");
  }

  /** found: of api.difference; null: nothing to mark. */
  setDifference(found) {
    this.mask = found && enlarge(found.mask, found.map, this.factor);
  }

  /** Makes room: `width` and `height` px at most for the whole picture, of which zoom shows a part. */
  fit(width, height, zoom) {
    if (!this.image || !width) return;
    const ratio = this.canvas.width / this.canvas.height;
    const shown = Math.max(THIN, Math.min(width, height * ratio));
    const tall = Math.max(THIN, Math.min(height, shown / ratio));
    const before = this.picture.offsetWidth || shown;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.frame;
    const middle = [(scrollLeft + clientWidth / 2) / before, (scrollTop + clientHeight / 2) / before];
    this.frame.style.width = `${shown}px`;
    this.frame.style.height = `${tall}px`;
    this.picture.style.width = `${shown * zoom}px`;
    this.picture.style.height = `${tall * zoom}px`;
    this.canvas.classList.toggle("pixels", (shown * zoom) / this.image.naturalWidth > 2);
    if (zoom > 1) this.frame.tabIndex = 0; // it scrolls: the keyboard must reach it
    else this.frame.removeAttribute("tabindex");
    this.frame.setAttribute("aria-label", zoom > 1 ? "Photo, arrow keys move it" : "Photo");
    const now = shown * zoom;
    this.frame.scrollTo(middle[0] * now - this.frame.clientWidth / 2, middle[1] * now - this.frame.clientHeight / 2);
  }

  /** view: {segments, outlines, labels, difference, opacity, hidden: Set of classOf, lit: an id or 0} */
  draw(view) {
    this.view = view;
    if (!this.image) return;
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = this.factor < 3;
    context.drawImage(this.image, 0, 0, width, height);
    if (this.answer) {
      this.#paint();
      this.layer.getContext("2d").putImageData(this.pixels, 0, 0);
      context.drawImage(this.layer, 0, 0);
    }
    this.#placeLabels();
  }

  #paint() {
    const view = this.view;
    const fill = new Uint32Array(256);
    const line = new Uint32Array(256);
    for (const segment of this.answer.segments) {
      if (!this.isShown(segment)) continue;
      const lit = segment.id === view.lit;
      const base = view.segments ? view.opacity : 0;
      fill[segment.id] = color32(segment.color, lit ? Math.max(0.35, Math.min(1, base + 0.2)) : view.lit ? base * DIM : base);
      if (lit || view.outlines) line[segment.id] = color32(WHITE, lit || !view.lit ? 1 : DIM);
    }
    const pixels = new Uint32Array(this.pixels.data.buffer);
    paint(pixels, this.ids, this.edges, fill, line);
    const { width, height } = this.canvas;
    if (this.mask && view.difference) stripe(pixels, this.mask, width, MARKS, Math.max(2, Math.round(Math.max(width, height) / 240)));
  }

  isShown(segment) {
    return !this.view?.hidden.has(classOf(segment));
  }

  /** The id at x, y of 0 .. 1; 0: void, outside, or a class that is switched off. */
  idAt(x, y) {
    if (!this.ids || x === null || x < 0 || y < 0 || x >= 1 || y >= 1) return 0;
    const { width, height } = this.canvas;
    const segment = this.byId.get(this.ids[Math.floor(y * height) * width + Math.floor(x * width)]);
    return segment && this.isShown(segment) ? segment.id : 0;
  }

  /** What a segment is, beside the place x, y. */
  showTip(id, x, y) {
    const segment = this.byId.get(id);
    this.tip.hidden = !segment;
    if (!segment) return;
    const lines = figures(segment, this.answer.size).map((words) => element("span", "", words));
    this.tip.replaceChildren(element("strong", "", segment.name), ...lines);
    const box = this.tip.offsetParent.getBoundingClientRect();
    const canvas = this.canvas.getBoundingClientRect();
    const beside = (place, size, room) => Math.max(0, place + 16 + size > room ? place - 12 - size : place + 16);
    this.tip.style.left = `${beside(canvas.left + x * canvas.width - box.left, this.tip.offsetWidth, box.width)}px`;
    this.tip.style.top = `${beside(canvas.top + y * canvas.height - box.top, this.tip.offsetHeight, box.height)}px`;
  }

  #placeLabels() {
    this.labels.replaceChildren();
    if (!this.answer || !this.view?.labels) return;
    const segments = this.labelled();
    const labels = segments.map(({ segment }) => {
      const label = element("span", "", labelOf(segment));
      label.style.backgroundColor = css(segment.color);
      label.style.color = textColor(segment.color);
      return label;
    });
    this.labels.append(...labels);
    const sizes = labels.map((label) => ({ width: label.offsetWidth, height: label.offsetHeight }));
    const { offsetWidth, offsetHeight } = this.labels;
    for (const [place, box] of placeLabels(segments, sizes, offsetWidth, offsetHeight).entries()) {
      if (!box) labels[place].remove();
      else Object.assign(labels[place].style, { left: `${box.left}px`, top: `${box.top}px` });
    }
  }

  /** Segments with a label, the largest first, and where it goes. */
  labelled() {
    return this.answer.segments
      .filter((segment) => segment.point && this.isShown(segment))
      .sort((a, b) => b.area - a.area)
      .map((segment) => ({ segment, x: segment.point[0], y: segment.point[1] }));
  }
}
