// Renders the cards of adapter_picker. Texts are inserted as text, never as HTML.
const container = () => element.querySelector('.cards');
const single = container().classList.contains('single');
const MAX_STRENGTH = 1.5;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
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

function triggerButton(entry) {
  const button = make('button', 'trigger', entry.trigger);
  button.type = 'button';
  button.title = 'Insert into the prompt';
  button.setAttribute('aria-label', `Insert “${entry.trigger}” into the prompt`);
  button.addEventListener('click', () => trigger('insert', { text: entry.trigger }));
  return button;
}

function card(entry, use) {
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
  box.append(button);
  if (use && !single) {
    box.append(strengthSlider(use));
    if (entry.trigger) box.append(triggerButton(entry));
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

function render() {
  const uses = Object.fromEntries(selectedUses().map((use) => [use.name, use]));
  const entries = props.entries || [];
  keepFocus(() => container().replaceChildren(...entries.map((entry) => card(entry, uses[entry.name]))));
  if (!entries.length) {
    const empty = make('div', 'empty');
    empty.append(make('b', '', 'No adapters yet'), make('span', '', 'Train one, or import one under Library.'));
    container().append(empty);
  }
}

// Deselects adapters without a card: nobody could deselect them by hand.
function update() {
  const names = new Set((props.entries || []).map((entry) => entry.name));
  const kept = selectedUses().filter((use) => names.has(use.name));
  if (kept.length === selectedUses().length) return render();
  return select(single ? null : kept);
}

render();
watch(['value', 'entries'], () => setTimeout(update)); // after both have changed
