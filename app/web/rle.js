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

// Call `paint(x, y)` for each set pixel of a mask that is sampled `across` by `down` times.
export function eachPixel({ size: [height, width], counts }, across, down, paint) {
  const runs = runsOf(counts);
  let [run, end] = [0, runs[0]];
  for (let x = 0; x < across; x++) {
    const column = height * Math.floor(((x + 0.5) * width) / across);
    for (let y = 0; y < down; y++) {
      const place = column + Math.floor(((y + 0.5) * height) / down);
      while (place >= end) end += runs[++run];
      if (run % 2) paint(x, y);
    }
  }
}
