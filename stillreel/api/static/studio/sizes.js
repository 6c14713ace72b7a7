// Sizes to choose from.

/** The sizes that a model names, or those that are of use where it makes any: `[value, text]`. */
export function sizesOf(sizes, own) {
  const made = sizes.only.length ? sizes.only : [sizes.default, ...sizes.suggested, ...shapes(sizes)];
  const names = new Map(made.map((one) => [valueOf(one), `${one.width} × ${one.height} ${shape(one)}`]));
  if (own) names.set(valueOf(own), `${own.width} × ${own.height} · as the image`);
  return [...names];
}

const valueOf = ({ width, height }) => `${width}x${height}`;

/** Upright and square beside the default, where a model makes any size. */
function shapes({ default: { width, height } }) {
  const side = Math.min(width, height);
  return [{ width: height, height: width }, { width: side, height: side }];
}

function shape({ width, height }) {
  const part = width / height;
  const near = [[16 / 9, "16:9"], [9 / 16, "9:16"], [1, "1:1"], [4 / 3, "4:3"], [3 / 4, "3:4"], [3 / 2, "3:2"], [2 / 3, "2:3"], [21 / 9, "21:9"]];
  const found = near.find(([ratio]) => Math.abs(part / ratio - 1) < 0.04);
  return found ? `· ${found[1]}` : "";
}
