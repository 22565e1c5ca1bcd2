// The state of the page lives in its address, so that a link reproduces a view.

import { useCallback, useEffect, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";

const read = () => Object.fromEntries(new URLSearchParams(location.search));

export function useAddress() {
  const [shown, setShown] = useState(read);
  useEffect(() => {
    const back = () => setShown(read());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  // `silently` replaces the current history entry.
  const show = useCallback((changes, silently) => {
    const next = { ...read(), ...changes };
    for (const [name, value] of Object.entries(next)) {
      if (value === undefined || value === null || value === "") delete next[name];
    }
    const query = new URLSearchParams(next).toString();
    if (query === new URLSearchParams(read()).toString()) return;
    history[silently ? "replaceState" : "pushState"](null, "", `${location.pathname}?${query}`);
    setShown(next);
  }, []);
  return [shown, show];
}

const AGAIN = "convscope-again";

// Parameters that belong to one layer; a change of layer clears them.
export const NOTHING_CHOSEN = {
  filter: undefined,
  from: undefined,
  channel: undefined,
  pixel: undefined,
};

// Send a request whenever one of its dependencies changes. A late answer is dropped; the answer to
// the previous request stays available as `before`.
export function useAsked(question, dependencies) {
  const [times, setTimes] = useState(0);
  const [state, setState] = useState({ asked: [] });
  const asked = [...dependencies, times];
  const current = asked.every((value, place) => value === state.asked[place]);
  const before = state.answer ?? state.before;
  const failed = Boolean(current && state.error);
  useEffect(() => {
    if (!failed) return undefined;
    const again = () => setTimes(times + 1);
    addEventListener(AGAIN, again);
    return () => removeEventListener(AGAIN, again);
  }, [failed, times]);
  useEffect(() => {
    const answering = question();
    if (!answering) {
      setState({ asked });
      return undefined;
    }
    const stop = new AbortController();
    setState({ asked, before, waiting: true });
    answering(stop.signal).then(
      (answer) => !stop.signal.aborted && setState({ asked, answer }),
      (error) => !stop.signal.aborted && setState({ asked, error }),
    );
    return () => stop.abort();
  }, asked);
  return current ? state : { before };
}

// Repeat every request that failed.
export const askAgain = () => dispatchEvent(new Event(AGAIN));

// A blob URL holds its bytes until it is revoked. No event says when the browser has read the last
// image that had it, so that is done some time after it was shown.
const UNTIL_READ = 60_000;

// A URL of a Blob, good for as long as the component shows it.
export function useUrl(blob) {
  const url = useMemo(() => blob && URL.createObjectURL(blob), [blob]);
  useEffect(() => url && (() => setTimeout(() => URL.revokeObjectURL(url), UNTIL_READ)), [url]);
  return url;
}

// Parse "row,column", such as "3,5"; undefined outside a map of this height and width.
export function placeIn([height, width], text) {
  const [row, column] = (text ?? "").split(",");
  const place = [wholeBelow(height, row || undefined), wholeBelow(width, column || undefined)];
  return place.includes(undefined) ? undefined : place;
}

// The requested option, or the first one if it is unknown.
export const oneOf = (options, said) =>
  options.some(([key]) => key === said) ? said : options[0][0];

// Parse a whole number from 0 to limit - 1; undefined otherwise.
export function wholeBelow(limit, text) {
  const value = Number(text ?? NaN);
  return Number.isInteger(value) && value >= 0 && value < limit ? value : undefined;
}
