// The choice of models, how they are, and what the page says before the first photo.

import { find, write } from "./dom.js";

const NAMED = 12; // classes

/** A select's models, `nothing` among them where that is a choice. The value that was chosen and has gone; else "". */
export function fillChoice(select, models, nothing) {
  const before = select.value;
  const options = models.map((model) => {
    const option = new Option(model.title, model.id);
    option.title = model.place;
    return option;
  });
  if (nothing) options.unshift(new Option("nothing", ""));
  const names = (list) => [...list].map((option) => `${option.value} ${option.text}`).join("\n");
  if (names(options) === names(select.options)) return "";
  select.replaceChildren(...options);
  if (models.some((model) => model.id === before)) select.value = before;
  else if (!before && !nothing) select.value = (models.find((model) => model.state !== "failed") ?? models[0])?.id;
  else return before;
  return "";
}

/** Of the chosen models. */
export function showHealth(models) {
  const failed = models.filter((model) => model.state === "failed");
  if (failed.length) health("failed", failed.map((model) => model.reason).join(" "));
  else if (models.some((model) => model.state === "waiting")) health("waiting", "opens with the first photo");
  else health("ready", "ready");
}

export function health(state, words) {
  find("health").dataset.state = state;
  write(find("health-words"), words);
}

export function introduce({ network, classes }, { bytes, pixels }) {
  const some = classes.slice(0, NAMED).join(", ") + (classes.length > NAMED ? " and others" : "");
  write(find("knows"), classes.length ? `The network ${network} knows ${classes.length} classes: ${some}.` : "");
  const most = `At most ${bytes >> 20} MiB and ${pixels / 1e6} megapixels.`;
  write(find("limits"), `${most} Photos go to the viewer and its models alone, and are kept in memory until it ends.`);
}
