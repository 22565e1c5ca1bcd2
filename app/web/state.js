// What the page shows, kept in its address, so that a view can be sent to somebody.

import { useCallback, useEffect, useState } from "./vendor/htm-preact-3.1.1.js";

const read = () => Object.fromEntries(new URLSearchParams(location.search));

export function useAddress() {
  const [shown, setShown] = useState(read);
  useEffect(() => {
    const back = () => setShown(read());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  // With `silently`, no new entry of the history.
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

// What belongs to one layer.
export const NOTHING_CHOSEN = {
  filter: undefined,
  from: undefined,
  channel: undefined,
  pixel: undefined,
};

// Ask for something whenever what it depends on changes; an answer that comes late is dropped, and
// one to an earlier question is given as `before` alone.
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
    const answered = answering(stop.signal);
    answered.then(
      (answer) => !stop.signal.aborted && setState({ asked, answer }),
      (error) => !stop.signal.aborted && setState({ asked, error }),
    );
    return () => {
      stop.abort();
      answered.then(forget, () => undefined);
    };
  }, asked);
  return current ? state : { before };
}

// Ask once more for everything that failed.
export const askAgain = () => dispatchEvent(new Event(AGAIN));

// The address of a picture that nobody looks at any more holds its bytes until it is given back.
const forget = (answer) => {
  const address = answer?.url ?? answer;
  if (typeof address === "string") URL.revokeObjectURL(address);
};

// A row and a column from an address, such as 3,5, if they lie in such a map.
export function placeIn([height, width], text) {
  const [row, column] = (text ?? "").split(",");
  const place = [wholeBelow(height, row || undefined), wholeBelow(width, column || undefined)];
  return place.includes(undefined) ? undefined : place;
}

// What an address says, if it is one of the options, whose first is taken else.
export const oneOf = (options, said) =>
  options.some(([key]) => key === said) ? said : options[0][0];

// A whole number from an address, if it is one from 0 to below a limit.
export function wholeBelow(limit, text) {
  const value = Number(text ?? NaN);
  return Number.isInteger(value) && value >= 0 && value < limit ? value : undefined;
}
