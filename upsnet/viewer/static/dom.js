// Elements and words that several parts of the page make.

export const find = (id) => document.getElementById(id);

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function button(text, onClick, className = "") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

/** Writes only what is new: whatever reads the page aloud is told of changes alone. */
export function write(target, words) {
  if (target.textContent !== words) target.textContent = words;
}

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

/** Black or white, whichever is easier to read: its contrast is 4.58 at least (WCAG 2.2, relative luminance). */
export function textColor(color) {
  const [red, green, blue] = color.map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "black" : "white";
}

export function time(seconds) {
  if (seconds >= 10) return `${seconds.toFixed(1)} s`;
  return `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
}

export const labelOf = (segment) => (segment.isthing ? `${segment.name} ${segment.score.toFixed(2)}` : segment.name);

/** What is known of a segment beside its name: the score of a thing, and its area. */
export function figures(segment, [height, width]) {
  const share = ((100 * segment.area) / (height * width)).toFixed(1);
  return [segment.isthing ? `score ${segment.score.toFixed(2)}` : "stuff", `${count(segment.area)} px, ${share} %`];
}

export const count = (number) => number.toLocaleString("en");

/** Boxes for labels, the largest segment's first: each on its point, inside, and on no other. null: no room. */
export function placeLabels(points, sizes, width, height) {
  const placed = [];
  return points.map(({ x, y }, place) => {
    const box = { ...sizes[place] };
    box.left = Math.min(Math.max(0, x * width - box.width / 2), Math.max(0, width - box.width));
    box.top = Math.min(Math.max(0, y * height - box.height / 2), Math.max(0, height - box.height));
    if (placed.some((other) => meet(box, other))) return null;
    placed.push(box);
    return box;
  });
}

function meet(a, b) {
  return a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;
}
