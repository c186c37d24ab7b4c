// The lists beside the picture: segments, classes, latency, the last photos.

import { classOf, filePath, thumbPath } from "./api.js";
import { button, count, css, element, figures, find, time, write } from "./dom.js";

/** One button for each segment. onLight(id): it is under the pointer or the focus; 0: it is no more. */
export function fillSegments(list, answer, isShown, { onLight, onPick }) {
  const segments = answer?.segments.filter(isShown) ?? [];
  const rows = segments.map((segment, place) => {
    const [score, area] = figures(segment, answer.size);
    const row = button("", () => onPick(segment.id));
    row.dataset.id = segment.id;
    row.tabIndex = place ? -1 : 0; // the arrow keys lead to the others
    const chip = element("span", "chip");
    chip.style.backgroundColor = css(segment.color);
    row.append(chip, element("span", "name", segment.name), " ", element("span", "figure", score), " ", element("span", "figure", area));
    row.addEventListener("focus", () => onLight(segment.id));
    row.addEventListener("blur", () => onLight(0));
    row.addEventListener("pointerenter", () => onLight(segment.id));
    row.addEventListener("pointerleave", () => onLight(0));
    return row;
  });
  list.replaceChildren(...rows.map(item));
  if (answer && !rows.length) list.append(element("li", "none", answer.segments.length ? "all are hidden" : "nothing found"));
}

export function markSegments(list, lit, picked) {
  for (const row of list.querySelectorAll("button")) {
    const id = Number(row.dataset.id);
    row.classList.toggle("lit", id === lit);
    row.setAttribute("aria-pressed", String(id === picked));
  }
}

/** Brings a segment's row into view, in its list alone: the page stays where it is. */
export function scrollTo(list, id) {
  const row = list.querySelector(`[data-id="${id}"]`)?.getBoundingClientRect();
  const box = list.getBoundingClientRect();
  if (row) list.scrollTop += Math.min(0, row.top - box.top) + Math.max(0, row.bottom - box.bottom);
}

/** Arrow keys, Home and End go from one button of a list to the next. */
export function moveInList(event) {
  const rows = [...event.currentTarget.querySelectorAll("button")];
  const place = rows.indexOf(document.activeElement);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: rows.length - 1 }[event.key];
  if (next === undefined || place < 0 || !rows[next]) return;
  event.preventDefault();
  rows[place].tabIndex = -1;
  rows[next].tabIndex = 0;
  rows[next].focus();
}

/** A checkbox for each class that was found. hidden: a Set of `classOf`, which is changed. */
export function fillClasses(answers, hidden, onChange) {
  const found = new Map();
  for (const { segments } of answers) {
    for (const segment of segments) found.set(classOf(segment), segment);
  }
  const boxes = [...found].map(([key, { category_id: id, name }]) => {
    const counts = answers.map(({ segments }) => segments.filter((segment) => classOf(segment) === key).length);
    const label = element("label");
    const box = element("input");
    box.type = "checkbox";
    box.value = id;
    box.dataset.class = key;
    box.checked = !hidden.has(key);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(key);
      else hidden.add(key);
      onChange();
    });
    const number = element("span", "figure", counts.join(" / "));
    label.append(box, element("span", "", name), number);
    return label;
  });
  find("class-list").replaceChildren(...boxes);
}

export function checkClasses(hidden) {
  for (const box of find("class-list").querySelectorAll("input")) box.checked = !hidden.has(box.dataset.class);
}

/** columns: {title, stages: [{name, seconds}], total}. upload: seconds, of a photo that this page has sent. */
export function fillStages(columns, upload) {
  const table = find("stages");
  const head = element("tr");
  head.append(element("td"), ...columns.map(({ title }) => (title ? header("col", title) : element("td"))));
  table.tHead.replaceChildren(head);
  const most = Math.max(...columns.flatMap(({ stages }) => stages.map((stage) => stage.seconds)), 0);
  const names = [...new Set(columns.flatMap(({ stages }) => stages.map((stage) => stage.name)))];
  const rows = names.map((name) => {
    const row = element("tr");
    const cells = columns.map(({ stages }) => {
      const stage = stages.find((each) => each.name === name);
      const cell = element("td", "", stage ? time(stage.seconds) : "");
      if (stage) cell.style.setProperty("--share", `${(100 * stage.seconds) / most}%`);
      return cell;
    });
    row.append(header("row", name), ...cells);
    return row;
  });
  const total = element("tr", "total");
  total.append(header("row", "in all"), ...columns.map((column) => element("td", "", time(column.total))));
  rows.push(total);
  if (upload !== undefined) {
    const row = element("tr", "before");
    const cell = element("td", "", time(upload));
    cell.colSpan = columns.length;
    row.append(header("row", "upload (before)"), cell);
    rows.push(row);
  }
  table.tBodies[0].replaceChildren(...rows);
}

export function fillDifference(found) {
  find("difference").hidden = find("difference-switch").hidden = !found;
  find("difference").classList.toggle("same", !found?.differing);
  find("difference").classList.toggle("apart", Boolean(found?.classes));
  if (!found) return;
  if (found.classes) {
    find("difference-switch").hidden = true;
    write(find("difference-words"), `Pixels are not compared: the two models know different classes (${found.classes})`);
    return;
  }
  const share = (100 * found.differing) / found.pixels;
  const digits = share < 0.1 ? 3 : 1;
  const words = `${count(found.differing)} of ${count(found.pixels)} pixels differ (${share.toFixed(digits)} %)`;
  write(find("difference-words"), found.differing ? words : `All ${count(found.pixels)} pixels are identical`);
}

/** The files of a model's answer. whose: " of A" where there are two. */
export function fillLinks({ name, answer, select }, photo, whose) {
  const files = { "download-ids": ["ids.png", "Segment ids (PNG)"], "download-json": ["coco.json", "COCO JSON"] };
  for (const [id, [file, words]] of Object.entries(files)) {
    const link = find(name === "a" ? id : `${id}-${name}`);
    link.hidden = !answer;
    if (answer) link.href = filePath(photo, select.value, file);
    write(link, words + whose);
  }
}

export function fillPhotos(photos, current, onShow) {
  const list = find("photos");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  find("last").hidden = !photos.length;
  const rows = photos.map((photo) => {
    const row = button("", () => onShow(photo));
    row.dataset.id = photo.id;
    row.setAttribute("aria-pressed", String(photo.id === current?.id));
    const image = element("img");
    image.src = thumbPath(photo);
    image.alt = "";
    row.append(image, element("span", "", photo.name));
    return row;
  });
  list.replaceChildren(...rows.map(item));
  rows.find((row) => row.dataset.id === focused)?.focus();
}

function item(child) {
  const made = element("li");
  made.append(child);
  return made;
}

function header(scope, text) {
  const cell = element("th", "", text);
  cell.scope = scope;
  return cell;
}
