// The page: photos go in, and what the models say about them is shown.

import * as api from "./api.js";
import { connectCamera } from "./camera.js";
import { connectView } from "./controls.js";
import { find, time, write } from "./dom.js";
import { connectFiles } from "./files.js";
import { connectGiving } from "./giving.js";
import * as header from "./header.js";
import { Pane } from "./pane.js";
import * as panel from "./panel.js";
import { savePicture } from "./picture.js";

const LOOK_EVERY = 2500; // ms
const MOST_ZOOM = 16;

const view = { segments: true, outlines: true, labels: true, difference: true, opacity: 0.5, hidden: new Set() };
const sides = ["a", "b"].map((name) => {
  const side = { name, answer: null, failed: "", lit: 0, picked: 0 };
  side.select = find(`model-${name}`);
  side.list = find(name === "a" ? "segments" : "segments-b");
  side.pane = new Pane(find(`pane-${name}`), {
    onHover: (x, y) => hover(side, x, y),
    onPick: (x, y) => pick(side, side.pane.idAt(x, y)),
    onZoom: zoomBy,
    onScroll: (left, top) => sides.forEach((other) => other === side || other.pane.frame.scrollTo(left, top)),
  });
  return side;
});
const [a, b] = sides;
const uploads = new Map(); // seconds, by a photo's id
let models = [];
let limits = null;
let photos = [];
let photo = null; // the one that is shown
let pictured = Promise.resolve(); // its picture is there; else why not
let asking = new AbortController(); // of all that is asked about it
let found = null; // where the two answers differ
let zoom = 1;
let notice = ""; // what else there is to say when an answer is told

const chosen = () => sides.filter((side) => side.select.value);
const modelOf = (side) => models.find((model) => model.id === side.select.value);
const title = (side) => side.answer?.title ?? modelOf(side)?.title ?? "no model";

// Photos come in

async function give(files) {
  const faults = [];
  let last = null;
  for (const file of files) {
    try {
      setState("asking");
      write(find("status"), `Sending ${file.name}`);
      last = await send(file);
      if (files.length > 1) await refreshPhotos();
    } catch (error) {
      faults.push(error);
    }
  }
  write(find("status"), "");
  if (last) await show(last);
  const words = faults.map((error) => error.message).join(" ");
  if (faults.length) complain(words, find("status").textContent, faults.some((error) => error.kind !== "photo") && photo);
  await refreshPhotos().catch(() => {}); // it is tried again with the next look
}

async function send(file) {
  if (limits && file.size > limits.bytes)
    throw new api.Refused("photo", `${file.name}: more than ${limits.bytes >> 20} MiB; make it smaller.`);
  const started = performance.now();
  const added = await api.addPhoto(file, file.name);
  uploads.set(added.id, (performance.now() - started) / 1000);
  return added;
}

async function show(wanted) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  photo = wanted;
  document.title = `${photo.name} - UPSNet viewer`;
  for (const side of sides) Object.assign(side, { answer: null, failed: "", lit: 0, picked: 0 });
  setFound(null);
  zoom = 1;
  panel.fillPhotos(photos, photo, show);
  pictured = picture(wanted);
  const answers = askAll(); // while the picture comes
  try {
    const image = await pictured;
    if (signal.aborted) return;
    for (const side of sides) side.pane.setPhoto(image, photo.name);
    find("side").hidden = false;
    for (const side of sides) if (side.answer) side.pane.setAnswer(side.answer);
    setFound(found);
    refresh();
    await answers;
  } catch (error) {
    if (!signal.aborted) complain(error.message);
  }
}

async function picture(wanted) {
  const image = new Image();
  image.src = api.imagePath(wanted);
  try {
    await image.decode();
  } catch {
    await api.models(); // says so where the viewer has gone
    throw new api.Refused("forgotten", "The viewer keeps the last photos only, and this one is gone; give it again.");
  }
  return image;
}

/** Asks the chosen models that have not answered yet. */
async function askAll() {
  const { signal } = asking;
  const wanted = chosen().filter((side) => !side.answer);
  for (const side of wanted) side.failed = "";
  if (wanted.length) {
    setState("asking");
    write(find("status"), `Asking ${wanted.map(title).join(" and ")}`);
    find("error").hidden = true;
  }
  refresh();
  await Promise.all(wanted.map((side) => askOne(side, signal)));
  if (signal.aborted) return;
  let fault = "";
  if (a.answer && b.answer && !found) {
    try {
      setFound(await api.difference(photo, a.select.value, b.select.value, signal));
    } catch (error) {
      fault = error.message;
    }
    if (signal.aborted) return;
  }
  const there = await pictured.then(() => true, () => false); // without its picture no answer is shown
  if (there && !signal.aborted) finish(fault);
}

async function askOne(side, signal) {
  const started = performance.now();
  side.pane.figure.setAttribute("aria-busy", "true");
  const counting = setInterval(() => write(side.pane.wait, `asking, ${time((performance.now() - started) / 1000)}`), 500);
  write(side.pane.wait, "asking");
  try {
    const answer = await api.answer(photo, side.select.value, signal);
    if (signal.aborted) return;
    answer.total = (performance.now() - started) / 1000;
    side.answer = answer;
    if (side.pane.image) side.pane.setAnswer(answer);
    refresh();
  } catch (error) {
    if (!signal.aborted) side.failed = error.message;
  } finally {
    clearInterval(counting);
    if (!signal.aborted) {
      write(side.pane.wait, "");
      side.pane.figure.removeAttribute("aria-busy");
    }
  }
}

function finish(fault) {
  const failed = chosen().filter((side) => side.failed);
  const reason = (side) => (side.failed.includes(modelOf(side)?.place) ? side.failed : `${title(side)}: ${side.failed}`);
  const words = [...failed.map(reason), fault].filter(Boolean).join(" ");
  const answered = chosen().filter((side) => side.answer);
  const told = answered.map((side) => `${title(side)}: ${side.answer.words}, ${time(side.answer.total)}.`).join(" ");
  const status = `${told} ${notice}`.trim();
  notice = "";
  write(find("status"), status);
  if (words) complain(words, status);
  else {
    find("error").hidden = true;
    setState(answered.length ? "shown" : "asking"); // without a model nobody is asked yet
  }
  refresh();
  look(); // a model that was opened is ready now
}

/** Another model, or the same again. */
function askAnew(side) {
  side.answer = null;
  Object.assign(side, { failed: "", lit: 0, picked: 0 });
  setFound(null);
  if (!photo) return;
  asking.abort();
  asking = new AbortController();
  if (side.pane.image) side.pane.setAnswer(null);
  askAll();
}

function setFound(difference) {
  found = difference;
  for (const side of sides) if (side.pane.image) side.pane.setDifference(found?.mask ? found : null);
}

// What is shown

/** All of it, after anything has changed. */
function refresh() {
  a.pane.figure.hidden = !a.pane.image;
  b.pane.figure.hidden = !b.pane.image || !b.select.value;
  find("first").hidden = !a.answer;
  find("second").hidden = !b.answer;
  find("side").classList.toggle("two", Boolean(b.answer));
  const number = (side) => side.answer?.segments.length ?? 0;
  write(find("segments-title"), `Segments${b.answer ? " of A" : ""} (${number(a)})`);
  write(find("segments-b-title"), `Segments of B (${number(b)})`);
  const answered = sides.filter((side) => side.answer);
  document.documentElement.dataset.photo = a.pane.image ? "yes" : "no";
  for (const card of document.querySelectorAll(".answered")) card.hidden = !answered.length;
  for (const side of sides) {
    write(side.pane.caption, b.select.value ? `${side.name.toUpperCase()}: ${title(side)}` : title(side));
    fillSegments(side);
  }
  panel.fillClasses(answered.map((side) => side.answer), view.hidden, classesChanged);
  panel.fillStages(answered.map(columnOf), uploads.get(photo?.id));
  panel.fillDifference(found);
  for (const side of sides) panel.fillLinks(side, photo, b.answer ? ` of ${side.name.toUpperCase()}` : "");
  fit();
  draw();
}

function fillSegments(side) {
  panel.fillSegments(side.list, side.answer, (segment) => side.pane.isShown(segment), {
    onLight: (id) => light(side, id),
    onPick: (id) => pick(side, id),
  });
}

function classesChanged() {
  panel.checkClasses(view.hidden);
  draw();
  for (const side of sides) fillSegments(side);
  draw();
}

/** The stages of an answer, and what is left of the time until it was here. */
function columnOf(side) {
  const { stages, total } = side.answer;
  const rest = total - stages.reduce((sum, stage) => sum + stage.seconds, 0);
  return { title: b.answer ? side.name.toUpperCase() : "", total, stages: [...stages, { name: "page", seconds: Math.max(0, rest) }] };
}

function draw() {
  for (const side of sides) {
    const lit = side.lit || side.picked;
    side.pane.draw({ ...view, lit });
    panel.markSegments(side.list, lit, side.picked);
  }
}

function fit() {
  const beside = !b.pane.figure.hidden && getComputedStyle(find("panes")).flexDirection === "row" ? 2 : 1;
  const width = find("panes").clientWidth / beside - (beside - 1) * 8;
  const height = Math.max(240, window.innerHeight - 250);
  for (const side of sides) side.pane.fit(width, height, zoom);
  write(find("zoom-fit"), zoom === 1 ? "Fit" : `${Math.round(100 * zoom)} %, fit`);
}

function zoomBy(factor) {
  zoom = factor ? Math.min(MOST_ZOOM, Math.max(1, zoom * factor)) : 1;
  if (zoom < 1.05) zoom = 1;
  fit();
}

// A segment under the pointer or the focus, or one that was chosen

function hover(side, x, y) {
  for (const other of sides) {
    const id = other === side || found ? other.pane.idAt(x, y) : 0;
    other.pane.showTip(id, x, y);
    light(other, id);
  }
}

let drawing = 0;
function light(side, id) {
  if (side.lit === id) return;
  side.lit = id;
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(draw);
}

function dim() {
  for (const side of sides) {
    side.lit = 0;
    side.pane.showTip(0);
  }
}

function pick(side, id) {
  side.picked = side.picked === id ? 0 : id;
  if (!side.picked) dim(); // a finger leaves its tip behind
  draw();
  panel.scrollTo(side.list, side.picked);
}

// Words

function setState(state) {
  document.documentElement.dataset.state = state;
}

/** status: what else there is to say. again: whether it may go well the next time. */
function complain(words, status = "", again = true) {
  write(find("error-words"), words);
  find("retry").hidden = !again;
  find("error").hidden = false;
  write(find("status"), status);
  setState("error");
}

// The models and the last photos

async function look() {
  try {
    const told = await api.models();
    limits = told.limits;
    const were = new Map(models.map((model) => [model.id, model]));
    models = told.models;
    fillModels(were);
    const back = (side) => side.failed && were.get(side.select.value)?.state === "failed" && modelOf(side)?.state !== "failed";
    const asked = document.documentElement.dataset.state === "asking";
    for (const side of sides.filter(isRenewed)) askAnew(side);
    if (photo && (sides.some(back) || (asked && !were.size))) await askAll();
    await refreshPhotos();
  } catch (error) {
    header.health("failed", error.message);
  }
}

/** Whether another version is in service than the one that answered, or another network. */
function isRenewed({ answer, select }) {
  const model = models.find(({ id }) => id === select.value);
  if (!answer || !model) return false;
  return model.title !== answer.title || Boolean(model.identity && model.identity !== answer.identity);
}

/** were: the models until now, by id. */
function fillModels(were = new Map()) {
  for (const side of sides) {
    const gone = header.fillChoice(side.select, models, side === b);
    if (!gone) continue;
    notice = `${were.get(gone)?.title ?? gone} is not here any more.`;
    askAnew(side);
  }
  header.showHealth(chosen().map(modelOf));
  if (modelOf(a)) header.introduce(modelOf(a), limits);
}

async function refreshPhotos() {
  const before = photos.map((each) => each.id).join();
  const shown = find("photos").querySelector('[aria-pressed="true"]')?.dataset.id;
  photos = await api.photos();
  if (photos.map((each) => each.id).join() !== before || shown !== photo?.id) panel.fillPhotos(photos, photo, show);
}

async function forget() {
  try {
    await api.forgetPhotos();
    asking.abort();
    photo = null;
    for (const side of sides) {
      Object.assign(side, { answer: null, failed: "", lit: 0, picked: 0 });
      side.pane.clear();
    }
    found = null;
    find("side").hidden = find("error").hidden = true;
    document.title = "UPSNet viewer";
    setState("empty");
    refresh();
    await refreshPhotos();
    write(find("status"), "The viewer has forgotten its photos.");
  } catch (error) {
    complain(error.message);
  }
  find("file").focus();
}

// Controls

connectView(view, draw, classesChanged);
for (const side of sides) {
  side.list.addEventListener("keydown", panel.moveInList);
  side.select.addEventListener("change", () => {
    fillModels();
    askAnew(side);
  });
}
find("again").addEventListener("click", () => {
  for (const side of sides) side.answer = null;
  askAnew(a);
});
find("retry").addEventListener("click", async () => {
  find("error").hidden = true;
  setState(photo ? "asking" : "empty");
  await look();
  if (photo?.id && a.pane.image) await askAll();
  else if (photo) await show(photo);
});
find("download-picture").addEventListener("click", () => {
  savePicture(sides.filter((side) => side.answer).map((side) => side.pane), photo.name.replace(/\.[^.]+$/, ""));
});
connectFiles((words) => complain(words, find("status").textContent, false));
find("zoom-in").addEventListener("click", () => zoomBy(1.5));
find("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
find("zoom-fit").addEventListener("click", () => zoomBy(0));
find("forget").addEventListener("click", forget);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  for (const side of sides) side.picked = 0;
  dim();
  draw();
});
new ResizeObserver(fit).observe(find("panes"));
window.addEventListener("resize", fit);
connectGiving(give, (words) => complain(words, find("status").textContent, false));
connectCamera((file) => give([file]));

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LOOK_EVERY);
}
keepLooking();
