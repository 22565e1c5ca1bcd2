// Every request of the page. A failed one throws a Problem with the service's own words.

// `passing`: the same request may succeed later. `type`: the service's URI of the error.
export class Problem extends Error {
  constructor(message, passing, type) {
    super(message);
    this.passing = passing;
    this.type = type;
  }
}

async function ask(path, parameters, options = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  let answer;
  try {
    answer = await fetch(`${path}${query && "?"}${query}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service does not answer. Is it running?", true);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => undefined);
  const words = said?.detail ?? `The service answered with status ${answer.status}.`;
  throw new Problem(words, answer.status >= 500, said?.type);
}

const OCTETS = "application/octet-stream";

const json = async (answer) => (await answer).json();
const picture = async (answer) => (await answer).blob();

export function splitKey(key) {
  const [model, version] = key.split("/");
  return { model, version };
}

export const sampleUrl = (file) => `web/samples/${file}`;

export const readSample = async (file, signal) =>
  (await ask(sampleUrl(file), {}, { signal })).blob();

export const listModels = (signal) => json(ask("models", {}, { signal }));

export const readManifest = (key, signal) => {
  const { model, version } = splitKey(key);
  return json(ask(`models/${model}/versions/${version}`, {}, { signal }));
};

const post = (path, key, image, parameters, signal) =>
  ask(
    path,
    { ...splitKey(key), ...parameters },
    // The service recognises the format from the bytes; a file name proves nothing.
    { method: "POST", body: image, signal, headers: { "Content-Type": OCTETS } },
  );

export const predict = (key, image, coverage, signal) =>
  json(post("predict", key, image, { coverage }, signal));

export const detect = (key, image, least, signal) =>
  json(post("detect", key, image, { score_threshold: least }, signal));

export const segment = (key, image, signal) => json(post("segment", key, image, {}, signal));

export const explainOver = (key, image, name, signal) =>
  picture(post("explain", key, image, { class: name, format: "overlay" }, signal));

export const activations = (key, image, layer, signal) =>
  json(post("activations", key, image, { layer, format: "json" }, signal));

export const seen = (key, image, scale, signal) =>
  picture(post("activations", key, image, { layer: "pixels", scale, format: "png" }, signal));

export const readFilter = (key, layer, index, signal) =>
  json(ask(`filters/${index}`, { ...splitKey(key), layer, format: "json" }, { signal }));

export const responsesPicture = (key, layer, index, signal) => {
  const parameters = { ...splitKey(key), layer, show: "responses", format: "png" };
  return picture(ask(`filters/${index}`, parameters, { signal }));
};

export const filtersPicture = (key, layer, scale, columns, signal) => {
  const parameters = { ...splitKey(key), layer, show: "weights", scale, columns, format: "png" };
  return picture(ask("filters", parameters, { signal }));
};

export const readMatrix = (key, normalize, signal) =>
  json(
    ask("confusion-matrix", { ...splitKey(key), normalize, format: "json" }, { signal }),
  );

export const readEvaluation = (key, signal) =>
  json(ask("evaluation", { ...splitKey(key), format: "json" }, { signal }));

export const readCell = (key, truth, predicted, signal) =>
  json(
    ask(
      `confusion-matrix/${encodeURIComponent(truth)}/${encodeURIComponent(predicted)}`,
      { ...splitKey(key), format: "json" },
      { signal },
    ),
  );
