// The picture as it is shown, as a file.

import { css, labelOf, meet, textColor } from "./pane.js";

/** panes: side by side. */
export function savePicture(panes, name) {
  const widths = panes.map((pane) => pane.canvas.width);
  const canvas = document.createElement("canvas");
  canvas.width = widths.reduce((sum, width) => sum + width, 0);
  canvas.height = Math.max(...panes.map((pane) => pane.canvas.height));
  const context = canvas.getContext("2d");
  let left = 0;
  for (const pane of panes) {
    context.drawImage(pane.canvas, left, 0);
    if (pane.view.labels && pane.answer) drawLabels(context, pane, left);
    left += pane.canvas.width;
  }
  canvas.toBlob((content) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(content);
    link.download = `${name}_overlay.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}

function drawLabels(context, pane, left) {
  const { width, height } = pane.canvas;
  const size = Math.max(12, Math.round(Math.max(width, height) / 52));
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "center";
  const placed = [];
  for (const { segment, x, y } of pane.labelPoints()) {
    const text = labelOf(segment);
    const box = { width: context.measureText(text).width + 0.6 * size, height: 1.4 * size };
    box.left = Math.min(Math.max(0, x * width - box.width / 2), Math.max(0, width - box.width));
    box.top = Math.min(Math.max(0, y * height - box.height / 2), Math.max(0, height - box.height));
    if (placed.some((other) => meet(box, other))) continue;
    placed.push(box);
    context.fillStyle = css(segment.color);
    context.beginPath();
    context.roundRect(left + box.left, box.top, box.width, box.height, size / 4);
    context.fill();
    context.fillStyle = textColor(segment.color);
    context.fillText(text, left + box.left + box.width / 2, box.top + box.height / 2);
  }
}
