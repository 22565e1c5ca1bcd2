// The service's own palettes. Of signed values, ColorBrewer's "PuOr": purple below zero, white at zero,
// orange above.

const STOPS = [
  [45, 0, 75],
  [84, 39, 136],
  [128, 115, 172],
  [178, 171, 210],
  [216, 218, 235],
  [247, 247, 247],
  [254, 224, 182],
  [253, 184, 99],
  [224, 130, 20],
  [179, 88, 6],
  [127, 59, 8],
];

export function signedColour(value) {
  const place = ((Math.max(-1, Math.min(1, value)) + 1) / 2) * (STOPS.length - 1);
  const below = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[below].map((low, band) =>
    Math.round(low + (place - below) * (STOPS[below + 1][band] - low)),
  );
}

// Of classes, those of app/explore/palette.py (Okabe & Ito 2008); a test holds the two together.
const OF_CLASSES = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [213, 94, 0],
  [204, 121, 167],
  [0, 114, 178],
];

export const classColour = (index) => OF_CLASSES[index % OF_CLASSES.length];

// Black or white, whichever contrasts more with a colour (WCAG 2 relative luminance).
export function inkOn(colour) {
  const [red, green, blue] = colour.map((band) => ((band / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}
