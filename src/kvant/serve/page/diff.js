// Which words of two texts differ.

const MAX_CELLS = 4e6;

/** Split into words, each with the space before it. */
export const words = (text) => (text.trim() ? text.trimEnd().split(/(?<=\S)(?=\s)/) : []);

/** For two lists of words, return for each word whether the other text has it in the same order. */
export function common(a, b) {
  const inA = new Uint8Array(a.length);
  const inB = new Uint8Array(b.length);
  const left = a.map((word) => word.trim());
  const right = b.map((word) => word.trim());
  let start = 0;
  while (start < a.length && start < b.length && left[start] === right[start]) {
    inA[start] = inB[start] = 1;
    start += 1;
  }
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && left[endA - 1] === right[endB - 1]) inA[--endA] = inB[--endB] = 1;
  middle(left.slice(start, endA), right.slice(start, endB), inA, inB, start);
  return { inA, inB, prefix: start };
}

/** Mark a longest common subsequence by the textbook's table; two texts too long for it count as different. */
function middle(a, b, inA, inB, start) {
  const width = b.length + 1;
  if ((a.length + 1) * width > MAX_CELLS) return;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) inA[start + i++] = inB[start + j++] = 1;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i += 1;
    else j += 1;
  }
}
