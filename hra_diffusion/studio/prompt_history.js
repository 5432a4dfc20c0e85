// Stores the prompts of generations in this browser, the last ones first, and inserts one at a click.
const STORED = 'studio-prompts';
const MOST = 50;
const LONGEST = 10000; // characters: the browser's storage is limited
const box = () => element.querySelector('.prompt-history');
const fields = () => ['#prompt textarea', '#negative-prompt textarea'].map((field) => document.querySelector(field));

function stored() {
  try {
    const entries = JSON.parse(localStorage.getItem(STORED));
    return Array.isArray(entries) ? entries.filter((entry) => typeof entry?.prompt === 'string') : [];
  } catch { return []; }
}

function store(entries) {
  try { localStorage.setItem(STORED, JSON.stringify(entries)); } catch { /* private windows cannot save it */ }
  render();
}

function remember() {
  const [prompt, negative] = fields().map((field) => field?.value.trim() ?? '');
  if (!prompt || prompt.length + negative.length > LONGEST) return;
  const others = stored().filter((entry) => entry.prompt !== prompt || (entry.negative ?? '') !== negative);
  store([{ prompt, negative }, ...others].slice(0, MOST));
}

function insert(entry) {
  for (const [field, text] of [[fields()[0], entry.prompt], [fields()[1], entry.negative ?? '']]) {
    if (!field) continue;
    field.value = text;
    field.dispatchEvent(new Event('input', { bubbles: true }));
  }
  fields()[0]?.focus();
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  if (tag === 'button') node.type = 'button';
  return node;
}

function entryButton(entry) {
  const button = make('button', 'entry', entry.prompt);
  if (entry.negative) button.append(make('small', '', `Negative prompt: ${entry.negative}`));
  button.title = 'Replace the prompt and the negative prompt';
  button.addEventListener('click', () => insert(entry));
  return button;
}

function render() {
  const entries = stored();
  box().replaceChildren(...entries.map(entryButton));
  if (!entries.length) return box().append(make('p', 'note', 'The prompts of your generations, in this browser alone.'));
  const clear = make('button', 'clear', 'Clear history');
  clear.addEventListener('click', () => store([]));
  box().append(clear);
}

render();
document.addEventListener('click', ({ target }) => {
  if (target.closest?.('#generate')) remember();
}, true);
