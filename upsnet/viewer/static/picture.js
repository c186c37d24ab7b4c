// The picture as it is shown, as a file.

import { css, element, labelOf, placeLabels, textColor } from "./dom.js";
import { save } from "./files.js";

/** panes: side by side. */
export function savePicture(panes, name) {
  const canvas = element("canvas");
  canvas.width = panes.reduce((sum, pane) => sum + pane.canvas.width, 0);
  canvas.height = Math.max(...panes.map((pane) => pane.canvas.height));
  const context = canvas.getContext("2d");
  let left = 0;
  for (const pane of panes) {
    context.setTransform(1, 0, 0, 1, left, 0);
    context.drawImage(pane.canvas, 0, 0);
    if (pane.view.labels) drawLabels(context, pane);
    left += pane.canvas.width;
  }
  canvas.toBlob((content) => save(content, `${name}_overlay.png`), "image/png");
}

function drawLabels(context, pane) {
  const { width, height } = pane.canvas;
  const size = Math.max(12, Math.round(Math.max(width, height) / 52));
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "center";
  const segments = pane.labelled();
  const sizes = segments.map(({ segment }) => ({
    width: context.measureText(labelOf(segment)).width + 0.6 * size,
    height: 1.4 * size,
  }));
  for (const [place, box] of placeLabels(segments, sizes, width, height).entries()) {
    if (!box) continue;
    const { segment } = segments[place];
    context.fillStyle = css(segment.color);
    context.beginPath();
    context.roundRect(box.left, box.top, box.width, box.height, size / 4);
    context.fill();
    context.fillStyle = textColor(segment.color);
    context.fillText(labelOf(segment), box.left + box.width / 2, box.top + box.height / 2);
  }
}
