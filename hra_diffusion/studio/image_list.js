// Renders the thumbnails of the Images tab. The value is the list of selected names: one, or two to compare.
const list = () => element.querySelector('.image-list');

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function selected() { return Array.isArray(props.value) ? props.value : []; }

function select(value) {
  props.value = value;
  trigger('change');
  render();
  if (value.length && matchMedia('(max-width: 760px)').matches) { // the viewer is below the list there
    document.getElementById('image-viewer')?.scrollIntoView({ behavior: 'smooth' });
  }
}

function button(className, text, label, action) {
  const node = Object.assign(make('button', className, text), { type: 'button', title: label });
  node.setAttribute('aria-label', label);
  node.addEventListener('click', action);
  return node;
}

function item(entry) {
  const [first, second] = selected();
  const chosen = entry.name === first || entry.name === second;
  const box = make('div', `item${chosen ? ' selected' : ''}`);
  const open = button('open', '', `Image ${entry.title}`, () => select([entry.name]));
  open.setAttribute('aria-pressed', String(chosen));
  if (entry.thumbnail) open.append(Object.assign(make('img'), { src: entry.thumbnail, alt: entry.title }));
  else open.append(make('span', 'unreadable', 'Unreadable'));
  box.append(open);
  if (entry.starred) box.append(make('span', 'star', '★'));
  if (first && entry.name !== first) {
    box.append(button('compare', '⇄', `Compare with the selected image: ${entry.title}`, () => select([first, entry.name])));
  }
  return box;
}

function render() {
  const entries = props.items || [];
  const label = list().contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  list().replaceChildren(...entries.map(item));
  const labeled = [...list().querySelectorAll('[aria-label]')];
  if (label) labeled.find((node) => node.getAttribute('aria-label') === label)?.focus();
}

render();
watch(['value', 'items'], () => setTimeout(render));
