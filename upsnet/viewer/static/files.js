// Files for whoever looks at the page.

import { file } from "./api.js";
import { element, find } from "./dom.js";

export function save(content, name) {
  const link = element("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The links to what the viewer makes. A browser says nothing of a file that has gone: onFault(words) does. */
export function connectFiles(onFault) {
  for (const id of ["download-ids", "download-json", "download-ids-b", "download-json-b"]) {
    find(id).addEventListener("click", async (event) => {
      event.preventDefault();
      try {
        const { content, name } = await file(event.currentTarget.href);
        save(content, name);
      } catch (error) {
        onFault(error.message);
      }
    });
  }
}
