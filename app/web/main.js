// The page: a picture, what models make of it, and views of the models' insides.

import { html, render, useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";
import * as api from "./api.js";
import { Classify } from "./classify.js";
import { Choice, Progress, keyOf, measured } from "./parts.js";
import { Picture, firstSample, isReadOtherwise, sampleFile, samplesOf, useGiven } from "./picture.js";
import { NOTHING_CHOSEN, oneOf, useAddress, useAsked, useUrl } from "./state.js";

// A task has its view if a model of it is served. `open`: how many models are at first.
const TASKS = [
  { name: "classification", view: "", title: "Classify", open: 2 },
  { name: "detection", view: "detect", title: "Detect", open: 1 },
  { name: "segmentation", view: "segment", title: "Segment", open: 1 },
];
const INSIDES = [
  ["network", "Through the network"],
  ["filters", "Filters"],
  ["matrix", "Confusion matrix"],
];

// Fetched when they are asked for.
const LATER = {
  detect: async () => (await import("./detect.js")).Detect,
  segment: async () => (await import("./segment.js")).Segment,
  network: async () => {
    const { Network } = await import("./network.js");
    return (given) => given.image.data && html`<${Network} ...${given} />`;
  },
  filters: async () => (await import("./filters.js")).Filters,
  matrix: async () => (await import("./matrix.js")).Matrix,
};

// The views depend on the models, so nothing is shown before these are known.
function Page() {
  const models = useAsked(() => (signal) => api.listModels(signal), []);
  if (models.answer) return html`<${Service} models=${models.answer.models} />`;
  return html`
    <header><h1>Convscope</h1></header>
    <main><${Progress} state=${models} what="Asking which models there are" /></main>
  `;
}

function Service({ models }) {
  const [shown, show] = useAddress();
  const [file, setFile] = useState();
  const tasks = TASKS.filter(({ name }) => models.some(({ task }) => task === name));
  const served = useMemo(() => inOrder(tasks, models), [models]);
  const views = [...tasks.map(({ view, title }) => [view, title]), ...INSIDES];
  const view = oneOf(views, shown.view);
  const key = chosenModel(served, shown.model);
  const task =
    tasks.find((one) => one.view === view) ??
    tasks.find(({ name }) => served.some((model) => keyOf(model) === key && model.task === name));
  const ofTask = served.filter((model) => model.task === task.name);
  const isInside = INSIDES.some(([name]) => name === view);
  const open = openModels(ofTask, task.open, shown.models);
  const fetchedView = useAsked(() => LATER[view], [view]);
  const View = view === "" ? Classify : fetchedView.answer;
  const manifest = useAsked(
    () => (isInside ? (signal) => api.readManifest(key, signal) : undefined),
    [key, isInside],
  );
  const sample = samplesOf(task.name).includes(shown.sample) ? shown.sample : firstSample(task.name);
  const chosen = shown.sample ? undefined : file;
  const [image, fetched] = useImage(chosen, task.name, sample);
  const wantsPicture = !isInside || view === "network";
  // A classifier sees few pixels of a picture; others show it whole, with what they find.
  const seenBy = view === "network" ? key : view === "" && keyOf(ofTask[0]);
  const seen = useAsked(
    () => (image.data && seenBy ? (signal) => api.seen(seenBy, image.data, 8, signal) : undefined),
    [image, seenBy],
  );
  const unreadable = seen.error && !seen.error.passing;

  const onFile = useCallback(
    async (data, name) => {
      setFile({ data, name, isReadOtherwise: await isReadOtherwise(data) });
      show({ sample: undefined, why: undefined, view: wantsPicture ? view : task.view });
    },
    [show, view, task],
  );
  useEffect(() => {
    document.title = `${views.find(([name]) => name === view)[1]} · Convscope`;
  }, [view]);
  const given = useGiven(onFile);
  const onSample = (name) => {
    show({ sample: name, why: undefined });
  };
  // The way from a task leads into one of its own models.
  const lookInto = ofTask.some((model) => keyOf(model) === key) ? shown.model : keyOf(open[0]);
  const changes = (name) =>
    isInside || tasks.some((one) => one.view === name)
      ? { view: name }
      : { view: name, model: lookInto };

  return html`
    <header>
      <h1>Convscope</h1>
      <nav aria-label="Views">
        ${views.map(
          ([name, text]) => html`
            <a
              href=${`?${new URLSearchParams(withoutNothing({ ...shown, ...changes(name) }))}`}
              aria-current=${view === name ? "page" : undefined}
              onClick=${(event) => {
                if (event.ctrlKey || event.metaKey || event.shiftKey) return;
                event.preventDefault();
                show(changes(name));
              }}
              >${text}</a
            >
          `,
        )}
        <a href="docs">API</a>
      </nav>
    </header>
    <main>
      ${wantsPicture &&
      html`
        <div class="top">
          <${Picture}
            task=${task.name}
            sample=${sample}
            file=${chosen}
            given=${given}
            onSample=${onSample}
            onFile=${onFile}
          />
          ${seenBy && html`<${Seen} image=${image} fetched=${fetched} seen=${seen} />`}
        </div>
        ${!seenBy && fetched.error && html`<${Progress} state=${fetched} />`}
      `}
      ${isInside &&
      html`
        <div class="bar">
          <${Choice}
            label="Model"
            value=${key}
            options=${served.map((model) => [keyOf(model), titleOf(model, tasks)])}
            onChoose=${(value) =>
              show({ model: value, layer: undefined, ...NOTHING_CHOSEN })}
          />
        </div>
      `}
      ${!isInside &&
      ofTask.length > 1 &&
      html`
        <${Models}
          models=${ofTask}
          open=${open}
          onChoose=${(keys) => show({ models: [...others(ofTask, shown.models), ...keys].join() })}
        />
      `}
      <${Progress} state=${fetchedView} what="Fetching the view" />
      <${Progress} state=${manifest} what="Reading the model" />
      ${!isInside &&
      View &&
      image.data &&
      !unreadable &&
      html`<${View} models=${open} image=${image} shown=${shown} show=${show} />`}
      ${isInside &&
      manifest.answer &&
      View &&
      html`<${View}
        manifest=${manifest.answer}
        modelKey=${key}
        image=${unreadable ? NO_IMAGE : image}
        shown=${shown}
        show=${show}
      />`}
    </main>
  `;
}

// The models of a task: which of them are open.
function Models({ models, open, onChoose }) {
  const toggle = (model) => {
    const isOpen = open.includes(model);
    if (isOpen && open.length === 1) return;
    onChoose((isOpen ? open.filter((one) => one !== model) : [...open, model]).map(keyOf));
  };
  return html`
    <ul class="models" aria-label="Models to show">
      ${models.map(
        (model) => html`
          <li>
            <button
              type="button"
              aria-pressed=${open.includes(model)}
              aria-disabled=${open.length === 1 && open.includes(model)}
              onClick=${() => toggle(model)}
            >
              ${keyOf(model)} <small>${measured(model)}</small>
            </button>
          </li>
        `,
      )}
    </ul>
  `;
}

// By task; of each the default model first, then the fully connected one, which it is compared with.
const inOrder = (tasks, models) =>
  tasks.flatMap(({ name }) =>
    models
      .filter(({ task }) => task === name)
      .sort((a, b) => b.default - a.default || (b.architecture === "fc") - (a.architecture === "fc")),
  );

const titleOf = (model, tasks) =>
  tasks.length > 1 ? `${keyOf(model)}, ${model.task}` : keyOf(model);

function chosenModel(models, wanted) {
  const keys = models.map(keyOf);
  return keys.includes(wanted) ? wanted : keys[0];
}

// The models of a task that the address names, or the first ones.
function openModels(models, count, wanted) {
  const keys = (wanted ?? "").split(",");
  const chosen = models.filter((model) => keys.includes(keyOf(model)));
  return chosen.length ? chosen : models.slice(0, count);
}

// The models of other tasks that the address names.
const others = (models, wanted) =>
  (wanted ?? "").split(",").filter((key) => key && !models.some((model) => keyOf(model) === key));

const withoutNothing = (parameters) =>
  Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== undefined));

const NO_IMAGE = {};

// The picture (its bytes as sent, its name, and whether the browser may show another one than the
// service reads) and the state of the request that fetches it. Until it is there, the one before
// stands for it, unless that was of another task.
function useImage(file, task, sample) {
  const source = file ?? sampleFile(task, sample);
  const fetched = useAsked(
    () => async (signal) => {
      const given = file ?? { data: await api.readSample(source, signal), name: sample };
      return { ...given, task };
    },
    [source],
  );
  const before = !fetched.error && fetched.before?.task === task && fetched.before;
  return [fetched.answer ?? (before || NO_IMAGE), fetched];
}

function Seen({ image, fetched, seen }) {
  const [broken, fail] = useState();
  const [url, pixels] = [useUrl(image.data), useUrl(seen.answer)];
  return html`
    <section class="seen" aria-label="The picture and what the network sees">
      <${Progress} state=${fetched} what="Fetching the picture" />
      ${url &&
      html`
        <figure>
          ${!seen.error &&
          (broken === image
            ? html`<p>The browser cannot show this file.</p>`
            : html`<img src=${url} alt=${image.name} onError=${() => fail(image)} />`)}
          <figcaption>${image.name}</figcaption>
        </figure>
      `}
      <${Progress} state=${seen} what="Reading the picture" />
      ${pixels &&
      html`
        <figure>
          <img class="pixels" src=${pixels} alt="The picture in the network's pixels" />
          <figcaption>what the network sees</figcaption>
        </figure>
      `}
    </section>
  `;
}

render(html`<${Page} />`, document.getElementById("page"));
