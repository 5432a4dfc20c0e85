// Renders the cards of adapter_picker. Texts are inserted as text, never as HTML.
const container = () => element.querySelector('.cards');
const single = container().classList.contains('single');
const MAX_STRENGTH = 1.5;
const FEW = 8; // up to this many adapters, the list has neither a search field nor a scroll area
const FAVORITES = 'studio-favorites';

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function favorites() {
  try { return new Set(JSON.parse(localStorage.getItem(FAVORITES)) ?? []); } catch { return new Set(); }
}

function toggleFavorite(name) {
  const names = favorites();
  if (!names.delete(name)) names.add(name);
  try { localStorage.setItem(FAVORITES, JSON.stringify([...names])); } catch { /* private windows cannot save it */ }
  document.dispatchEvent(new Event('favorites'));
}

function selectedUses() {
  if (single) return props.value ? [{ name: props.value }] : [];
  return Array.isArray(props.value) ? props.value : [];
}

function select(value) {
  props.value = value;
  trigger('change');
  render();
}

function toggle(name) {
  if (single) return select(props.value === name ? null : name);
  const others = selectedUses().filter((use) => use.name !== name);
  select(others.length < selectedUses().length ? others : [...others, { name, strength: 1 }]);
}

function strengthSlider(use) {
  const row = make('label', 'strength');
  const slider = make('input');
  const number = make('output', '', Number(use.strength).toFixed(2));
  Object.assign(slider, { type: 'range', min: 0, max: MAX_STRENGTH, step: 0.05, value: use.strength });
  slider.setAttribute('aria-label', `Strength of ${use.name}`);
  slider.style.setProperty('--at', `${(use.strength / MAX_STRENGTH) * 100}%`);
  slider.addEventListener('input', () => {
    number.textContent = Number(slider.value).toFixed(2);
    slider.style.setProperty('--at', `${(slider.value / MAX_STRENGTH) * 100}%`);
  });
  slider.addEventListener('change', () => {
    const strength = Number(slider.value);
    props.value = selectedUses().map((other) => (other.name === use.name ? { ...other, strength } : other));
    trigger('change');
  });
  row.append(make('span', '', 'Strength'), slider, number);
  return row;
}

// Inserts a text at the cursor of the prompt, with spaces around it.
function insertIntoPrompt(text) {
  const box = document.querySelector('#prompt textarea');
  const [start, end] = [box.selectionStart, box.selectionEnd];
  const before = start && !/\s$/.test(box.value.slice(0, start)) ? ' ' : '';
  const after = box.value.slice(end) && !/^[\s,.]/.test(box.value.slice(end)) ? ' ' : '';
  box.setRangeText(before + text + after, start, end, 'end');
  box.dispatchEvent(new Event('input', { bubbles: true }));
  box.focus();
}

function tokenButton(entry) {
  const button = make('button', 'trigger', entry.token);
  button.type = 'button';
  button.title = 'Insert into the prompt, at the cursor';
  button.setAttribute('aria-label', `Insert “${entry.token}” into the prompt`);
  button.addEventListener('mousedown', (event) => event.preventDefault()); // the prompt keeps its cursor
  button.addEventListener('click', () => insertIntoPrompt(entry.token));
  return button;
}

function favoriteButton(entry, favorite) {
  const button = make('button', 'favorite', favorite ? '★' : '☆');
  button.type = 'button';
  button.title = favorite ? 'Favorite' : 'Make a favorite';
  button.setAttribute('aria-pressed', String(favorite));
  button.setAttribute('aria-label', `Favorite: ${entry.name}`);
  button.addEventListener('click', () => toggleFavorite(entry.name));
  return button;
}

function card(entry, use, favorite) {
  const box = make('div', `card${use ? ' selected' : ''}${entry.fits ? '' : ' incompatible'}`);
  const button = make('button', 'select');
  button.type = 'button';
  button.setAttribute('aria-pressed', String(Boolean(use)));
  button.setAttribute('aria-label', `${entry.name}, ${entry.annotator ? 'a control' : 'an adapter'} of ${entry.base}`);
  const thumbnail = make(entry.thumbnail ? 'img' : 'span', 'thumbnail');
  if (entry.thumbnail) Object.assign(thumbnail, { src: entry.thumbnail, alt: `Image generated with ${entry.name}` });
  else thumbnail.textContent = entry.name.slice(0, 1).toUpperCase();
  const text = make('span', 'text');
  text.append(make('b', '', entry.name), make('small', '', `${entry.base} · rank ${entry.rank}`));
  if (entry.annotator) text.append(make('small', 'control', `control · ${entry.annotator}`));
  if (!entry.fits) text.append(make('small', 'warning', 'other base model'));
  button.append(thumbnail, text, make('span', 'check', use ? '✓' : ''));
  button.addEventListener('click', () => toggle(entry.name));
  const row = make('div', 'row');
  row.append(button, favoriteButton(entry, favorite));
  box.append(row);
  if (use && !single) {
    box.append(strengthSlider(use));
    if (entry.token) box.append(tokenButton(entry));
  }
  return box;
}

// Keeps the focus by label: rendering replaces the elements, not their labels.
function keepFocus(change) {
  const label = container().contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  change();
  const labeled = [...container().querySelectorAll('[aria-label]')];
  if (label) labeled.find((node) => node.getAttribute('aria-label') === label)?.focus();
}

// The parts of the picker: search and order, the chosen adapters, the list of the others, and their number.
const parts = { tools: make('div', 'tools-row'), chosen: make('div', 'chosen'), list: make('div', 'list') };
const search = Object.assign(make('input', 'search'), { type: 'search', placeholder: 'Search adapters' });
const order = make('select', 'order');
const number = make('p', 'number');
search.setAttribute('aria-label', 'Search adapters');
order.setAttribute('aria-label', 'Order of adapters');
number.setAttribute('role', 'status');
for (const [value, label] of [['name', 'By name'], ['newest', 'Newest first']]) {
  order.append(Object.assign(make('option', '', label), { value }));
}
parts.tools.append(search, order);
container().append(parts.tools, parts.chosen, number, parts.list);
search.addEventListener('input', () => render());
order.addEventListener('change', () => render());
search.addEventListener('keydown', (event) => { if (event.key === 'Enter') event.stopPropagation(); });

function sorted(entries, stars) {
  const byName = (a, b) => a.name.localeCompare(b.name);
  const compare = order.value === 'newest' ? (a, b) => b.changed - a.changed || byName(a, b) : byName;
  return [...entries].sort((a, b) => stars.has(b.name) - stars.has(a.name) || compare(a, b));
}

function render() {
  const uses = Object.fromEntries(selectedUses().map((use) => [use.name, use]));
  const entries = props.entries || [];
  const stars = favorites();
  const words = search.value.toLowerCase().split(/\s+/);
  const text = (entry) => `${entry.name} ${entry.base} ${entry.token} ${entry.annotator}`.toLowerCase();
  const found = sorted(entries, stars).filter((entry) => words.every((word) => text(entry).includes(word)));
  const onTop = single ? [] : entries.filter((entry) => uses[entry.name]);
  const listed = found.filter((entry) => !onTop.includes(entry));
  const nodes = (some) => some.map((entry) => card(entry, uses[entry.name], stars.has(entry.name)));
  const many = entries.length > FEW;
  container().classList.toggle('many', many);
  number.textContent = many ? `${found.length} of ${entries.length} adapters` : '';
  keepFocus(() => {
    const top = parts.list.scrollTop;
    parts.chosen.replaceChildren(...nodes(onTop));
    parts.list.replaceChildren(...nodes(listed));
    parts.list.scrollTop = top;
  });
  if (!entries.length) {
    const empty = make('div', 'empty');
    empty.append(make('b', '', 'No adapters yet'), make('span', '', 'Train one, or import one under Library.'));
    parts.list.append(empty);
  }
}

// Deselects adapters without a card: nobody could deselect them by hand.
function update() {
  const names = new Set((props.entries || []).map((entry) => entry.name));
  const kept = selectedUses().filter((use) => names.has(use.name));
  if (kept.length === selectedUses().length) return render();
  return select(single ? null : kept);
}

// The page restores the choice soon after the first rendering: cards appear together with it, so that nothing moves.
const appear = () => container().classList.remove('restoring');
if (!single) {
  container().classList.add('restoring');
  setTimeout(appear, 1500);
}
render();
document.addEventListener('favorites', () => render());
watch(['value', 'entries'], () => setTimeout(() => { update(); appear(); })); // after both have changed
