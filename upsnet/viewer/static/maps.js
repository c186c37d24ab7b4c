// Maps of a byte a pixel: segment ids, and what differs.

/** Each pixel `factor` times in both directions. */
export function enlarge(map, { height, width }, factor) {
  if (factor === 1) return map;
  const wide = new Uint8Array(map.length * factor * factor);
  const row = new Uint8Array(width * factor);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < row.length; x++) row[x] = map[y * width + Math.floor(x / factor)];
    for (let copy = 0; copy < factor; copy++) wide.set(row, (y * factor + copy) * row.length);
  }
  return wide;
}

/** 1 on either side of a border between two ids. */
export function findEdges(ids, width, height) {
  const edges = new Uint8Array(ids.length);
  const thickness = Math.max(1, Math.round(Math.min(width, height) / 900));
  for (let step = 1; step <= thickness; step++) {
    for (let y = 0, place = 0; y < height; y++)
      for (let x = 0; x < width; x++, place++) {
        if (x >= step && ids[place] !== ids[place - step]) edges[place] = edges[place - step] = 1;
        if (y >= step && ids[place] !== ids[place - step * width]) edges[place] = edges[place - step * width] = 1;
      }
  }
  return edges;
}

/** Pixels of ImageData, as 32 bits each: `fill` by id, and `line` by id where an edge is. */
export function paint(pixels, ids, edges, fill, line) {
  for (let place = 0; place < pixels.length; place++) {
    const id = ids[place];
    pixels[place] = (edges[place] && line[id]) || fill[id];
  }
}

/** Stripes of two colours wherever `mask` is 1: they are seen on every colour, and by every eye. */
export function stripe(pixels, mask, width, [first, second], size) {
  for (let place = 0; place < pixels.length; place++) {
    if (!mask[place]) continue;
    const diagonal = (place % width) + Math.floor(place / width);
    pixels[place] = Math.floor(diagonal / size) & 1 ? first : second;
  }
}

/** A colour with its share of opacity, as ImageData has it. */
export function color32([red, green, blue], opacity) {
  return ((Math.round(255 * opacity) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
