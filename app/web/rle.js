// COCO's compressed run lengths: runs down the columns, left to right, first of pixels that are not
// set. app/images/rle.py writes them and names the source.

export function runsOf(counts) {
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let [value, unit, digit] = [0, 1, 0];
    do {
      digit = counts.charCodeAt(place++) - 48;
      value += (digit & 31) * unit;
      unit *= 32;
    } while (digit & 32);
    if (digit & 16) value -= unit;
    // From the fourth on, a number is the difference from the one two before.
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
  }
  return runs;
}

// The set runs of a mask: the place of the first pixel of each, and the one after its last.
function* setRuns(counts) {
  const runs = runsOf(counts);
  let end = 0;
  for (let place = 0; place < runs.length; place++) {
    const start = end;
    end += runs[place];
    if (place % 2 && end > start) yield [start, end];
  }
}

// Masks of one size, sampled `across` by `down` times, at most once a pixel. The function that is
// returned takes the counts of one, and calls `paint(x, y)` for each sample that is set. It walks
// the mask's runs, so that many small masks cost little more than one.
export function sampler([height, width], across, down) {
  const middle = (place, side, samples) => Math.floor(((place + 0.5) * side) / samples);
  const sampleOf = new Int32Array(width).fill(-1);
  for (let x = 0; x < across; x++) sampleOf[middle(x, width, across)] = x;
  const samplesAbove = new Int32Array(height + 1);
  for (let y = 0; y < down; y++) samplesAbove[middle(y, height, down) + 1] = 1;
  for (let row = 0; row < height; row++) samplesAbove[row + 1] += samplesAbove[row];
  return (counts, paint) => {
    for (const [start, end] of setRuns(counts)) {
      for (let column = Math.floor(start / height); column * height < end; column++) {
        const x = sampleOf[column];
        if (x < 0) continue;
        const after = samplesAbove[Math.min(end - column * height, height)];
        for (let y = samplesAbove[Math.max(start - column * height, 0)]; y < after; y++) paint(x, y);
      }
    }
  };
}

// The smallest box that holds a mask: x, y, width and height.
export function boxOf({ size: [height, width], counts }) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (const [start, end] of setRuns(counts)) {
    const [first, last] = [start, end - 1].map((place) => Math.floor(place / height));
    const isOneColumn = first === last;
    left = Math.min(left, first);
    right = Math.max(right, last + 1);
    top = Math.min(top, isOneColumn ? start % height : 0);
    bottom = Math.max(bottom, isOneColumn ? ((end - 1) % height) + 1 : height);
  }
  return [left, top, right - left, bottom - top];
}
