// What the page asks of its server.

/** What the server refused, or that it is gone. `kind` says whose fault it is: photo, server, busy, forgotten, gone. */
export class Refused extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

async function ask(path, options) {
  const response = await answered(path, options);
  return response.status === 204 ? null : response.json();
}

async function answered(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("gone", "The viewer itself does not answer. Is `upsnet viewer` still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(told.kind ?? "fault", told.error ?? `the viewer answered with status ${response.status}`);
}

const photoPath = (photo, rest = "") => `/api/photos/${encodeURIComponent(photo.id)}${rest}`;

export const models = () => ask("/api/models");
export const photos = async () => (await ask("/api/photos")).photos;
export const addPhoto = (content, name, signal) =>
  ask(`/api/photos?name=${encodeURIComponent(name)}`, { method: "POST", body: content, signal });
export const forgetPhotos = () => ask("/api/photos", { method: "DELETE" });
export const imagePath = (photo) => photoPath(photo, "/image");
export const thumbPath = (photo) => photoPath(photo, "/thumb");
export const filePath = (photo, model, file) => photoPath(photo, `/answers/${encodeURIComponent(model)}/${file}`);

/** A file that the viewer makes, and what it is called. */
export async function file(path) {
  const response = await answered(path);
  const name = decodeURIComponent(response.headers.get("Content-Disposition").split("''")[1]);
  return { content: await response.blob(), name };
}

/** What a model says about a photo; `ids` is its map, a byte a pixel. */
export async function answer(photo, model, signal) {
  const path = photoPath(photo, `/answers?model=${encodeURIComponent(model)}`);
  const found = await ask(path, { method: "POST", signal });
  return { ...found, ids: await unpack(found.map) };
}

/** The place of a class among those of all models. */
export const classOf = (segment) => `${segment.category_id} ${segment.name}`;

/** Where two models differ: how many pixels, and a map of 0 and 1. */
export async function difference(photo, a, b, signal) {
  const query = new URLSearchParams({ a, b });
  const found = await ask(photoPath(photo, `/difference?${query}`), { signal });
  if (found.classes) return found; // in which the two differ: pixels are not compared
  return { ...found, mask: await unpack(found.map) };
}

async function unpack({ deflated }) {
  const packed = Uint8Array.from(atob(deflated), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
