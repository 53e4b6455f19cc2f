/** What was dropped or chosen, as files with their paths inside the dropped folder. */

/** @typedef {{ path: string, file: File }} Given */

const IGNORED = /(^|\/)(\.git|\.cache|__pycache__|\.DS_Store)(\/|$)/;

/** @param {DataTransfer} transfer @returns {Promise<Given[]>} */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (!entries.length) return chosen(transfer.files);
  /** @type {Given[]} */
  const files = [];
  for (const entry of entries) await walk(entry, "", files);
  return files.filter(({ path }) => !IGNORED.test(path));
}

/** @param {FileList | null} list @returns {Given[]} */
export function chosen(list) {
  return [...(list ?? [])].map((file) => ({ path: file.webkitRelativePath || file.name, file })).filter(({ path }) => !IGNORED.test(path));
}

/** @param {FileSystemEntry} entry @param {string} above @param {Given[]} files */
async function walk(entry, above, files) {
  const path = above + entry.name;
  if (entry.isFile) {
    /** @type {File} */
    const file = await new Promise((resolve, reject) => { /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject); });
    files.push({ path, file });
    return;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) { // a reader gives at most a hundred entries at a time
    /** @type {FileSystemEntry[]} */
    const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!some.length) return;
    for (const inner of some) await walk(inner, `${path}/`, files);
  }
}
