// Draws the cards of adapter_picker. Texts go in as text, never as HTML.
const place = () => element.querySelector('.cards');
const single = place().classList.contains('single');
const MOST = 1.5;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function chosen() {
  if (single) return props.value ? [{ name: props.value }] : [];
  return Array.isArray(props.value) ? props.value : [];
}

function choose(value) {
  props.value = value;
  trigger('change');
  draw();
}

function toggle(name) {
  if (single) return choose(props.value === name ? null : name);
  const others = chosen().filter((use) => use.name !== name);
  choose(others.length < chosen().length ? others : [...others, { name, strength: 1 }]);
}

function strength(use) {
  const row = make('label', 'strength');
  const slider = make('input');
  const number = make('output', '', Number(use.strength).toFixed(2));
  Object.assign(slider, { type: 'range', min: 0, max: MOST, step: 0.05, value: use.strength });
  slider.setAttribute('aria-label', `Strength of ${use.name}`);
  slider.style.setProperty('--at', `${(use.strength / MOST) * 100}%`);
  slider.addEventListener('input', () => {
    number.textContent = Number(slider.value).toFixed(2);
    slider.style.setProperty('--at', `${(slider.value / MOST) * 100}%`);
  });
  slider.addEventListener('change', () => {
    props.value = chosen().map((each) => (each.name === use.name ? { ...each, strength: Number(slider.value) } : each));
    trigger('change');
  });
  row.append(make('span', '', 'Strength'), slider, number);
  return row;
}

function card(entry, use) {
  const box = make('div', `card${use ? ' chosen' : ''}${entry.fits ? '' : ' other'}`);
  const button = make('button', 'face');
  button.type = 'button';
  button.setAttribute('aria-pressed', String(Boolean(use)));
  button.setAttribute('aria-label', `${entry.name}, ${entry.follows ? 'a control' : 'an adapter'} of ${entry.base}`);
  const image = make(entry.image ? 'img' : 'span', 'image');
  if (entry.image) Object.assign(image, { src: entry.image, alt: `What ${entry.name} draws` });
  else image.textContent = entry.name.slice(0, 1).toUpperCase();
  const words = make('span', 'words');
  words.append(make('b', '', entry.name), make('small', '', `${entry.base} · rank ${entry.rank}`));
  if (entry.follows) words.append(make('small', 'control', `control · follows ${entry.follows}`));
  if (!entry.fits) words.append(make('small', 'warning', 'made for another base'));
  button.append(image, words, make('span', 'tick', use ? '✓' : ''));
  button.addEventListener('click', () => toggle(entry.name));
  box.append(button);
  if (use && !single) {
    box.append(strength(use));
    if (entry.trigger) {
      const insert = make('button', 'trigger', entry.trigger);
      insert.type = 'button';
      insert.title = 'Insert into the prompt';
      insert.setAttribute('aria-label', `Insert “${entry.trigger}” into the prompt`);
      insert.addEventListener('click', () => trigger('insert', { text: entry.trigger }));
      box.append(insert);
    }
  }
  return box;
}

// Focus stays where it is: the elements are new, their labels are not.
function keepingFocus(change) {
  const label = place().contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  change();
  const labeled = [...place().querySelectorAll('[aria-label]')];
  if (label) labeled.find((each) => each.getAttribute('aria-label') === label)?.focus();
}

function draw() {
  const uses = Object.fromEntries(chosen().map((use) => [use.name, use]));
  const entries = props.entries || [];
  keepingFocus(() => place().replaceChildren(...entries.map((entry) => card(entry, uses[entry.name]))));
  if (!entries.length) {
    const none = make('div', 'empty');
    none.append(make('b', '', 'No adapters yet'), make('span', '', 'Teach one, or import one under Library.'));
    place().append(none);
  }
}

// What has no card could not be taken back: it is not chosen any more.
function settle() {
  const here = new Set((props.entries || []).map((entry) => entry.name));
  const kept = chosen().filter((use) => here.has(use.name));
  if (kept.length === chosen().length) return draw();
  return choose(single ? null : kept);
}

draw();
watch(['value', 'entries'], () => setTimeout(settle)); // once both are there
