// Ways for a photo to get here: chosen, dropped, pasted.

import { find } from "./dom.js";

const MOST_AT_ONCE = 20; // photos

/** onFiles(files), onFault(words) */
export function connectGiving(onFiles, onFault) {
  const give = (files) => {
    if (files.length > MOST_AT_ONCE) onFault(`${files.length} photos: give at most ${MOST_AT_ONCE} at a time.`);
    else if (files.length) onFiles([...files]);
  };

  find("file").addEventListener("change", (event) => {
    give([...event.target.files]);
    event.target.value = ""; // the same one again is a change, too
  });

  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    give([...event.clipboardData.files]);
  });

  find("paste").addEventListener("click", async () => {
    let files = [];
    try {
      for (const item of await navigator.clipboard.read()) {
        const kind = item.types.find((type) => type.startsWith("image/"));
        if (kind) files.push(new File([await item.getType(kind)], "pasted photo.png", { type: kind }));
      }
    } catch {
      return onFault("The browser gives this button no clipboard; press Ctrl-V (Command-V on a Mac) instead.");
    }
    if (files.length) give(files);
    else onFault("There is no picture in the clipboard: copy one first.");
  });

  let depth = 0; // of the elements that a drag has entered
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  const show = (change) => {
    depth = Math.max(0, depth + change);
    find("dropping").hidden = !depth;
  };
  document.addEventListener("dragenter", (event) => carries(event) && show(1));
  document.addEventListener("dragleave", (event) => carries(event) && show(-1));
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    show(-depth);
    if (event.dataTransfer.files.length) give(event.dataTransfer.files);
    else onFault("What was dropped is no file: save the picture first, or copy it and paste it here.");
  });
}
