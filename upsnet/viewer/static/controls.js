// What the view shows, by its switches.

import { find, write } from "./dom.js";

/** view: what is switched; onChange(): something but the classes has changed; onClasses(): those have. */
export function connectView(view, onChange, onClasses) {
  for (const name of ["segments", "outlines", "labels", "difference"]) {
    find(`show-${name}`).addEventListener("change", (event) => {
      view[name] = event.target.checked;
      onChange();
    });
  }
  find("opacity").addEventListener("input", (event) => {
    view.opacity = event.target.value / 100;
    write(find("opacity-value"), `${event.target.value} %`);
    onChange();
  });
  find("classes-all").addEventListener("click", () => {
    view.hidden.clear();
    onClasses();
  });
  find("classes-none").addEventListener("click", () => {
    for (const box of find("class-list").querySelectorAll("input")) view.hidden.add(box.dataset.class);
    onClasses();
  });
}
