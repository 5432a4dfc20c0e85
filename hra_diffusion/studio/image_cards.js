// Renders the training images as cards: image with its crop, caption, crop and a button that removes it.
// Texts are inserted as text, never as HTML. The value has the rows of the table: name, caption and crop.
const container = element.querySelector('.image-cards');
const CROPS = ['whole', 'middle', 'start', 'end'];
const LIST = 'crops-of-training-images';
let cards = [];

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function send(removed = null) {
  const rows = cards.filter((_, index) => index !== removed).map((card) => [card.name, card.caption.value, card.crop.value]);
  props.value = { rows, removed };
  trigger('change');
}

function field(tag, className, label) {
  const node = make(tag, className);
  node.setAttribute('aria-label', label);
  node.addEventListener('change', () => send());
  return node;
}

function makeCard(entry, index) {
  const node = make('figure', 'image-card');
  const frame = make('div', 'frame');
  const image = Object.assign(make('img'), { src: entry.url, alt: entry.name });
  const box = make('i', 'crop-box');
  frame.append(image, box);
  const caption = field('textarea', 'caption', `Caption of ${entry.name}`);
  Object.assign(caption, { rows: 2, placeholder: 'The instance prompt' });
  const crop = field('input', 'crop', `Crop of ${entry.name}`);
  crop.setAttribute('list', LIST);
  const remove = make('button', 'remove', 'Remove');
  remove.type = 'button';
  remove.setAttribute('aria-label', `Remove ${entry.name}`);
  remove.addEventListener('click', () => send(index));
  const line = make('div', 'line');
  line.append(crop, remove);
  const problem = make('p', 'note warning');
  node.append(frame, make('figcaption', '', `${entry.name} · ${entry.size}`), caption, line, problem);
  return { name: entry.name, url: entry.url, node, box, caption, crop, problem };
}

function fill(input, text) {
  if (document.activeElement !== input) input.value = text;
}

function showCrop(card, crop) {
  const [left, top, width, height] = (crop?.box || [0, 0, 1, 1]).map((part) => `${100 * part}%`);
  Object.assign(card.box.style, { left, top, width, height });
  card.problem.textContent = crop?.problem || '';
  card.problem.hidden = !crop?.problem;
}

function options() {
  const list = Object.assign(make('datalist'), { id: LIST });
  list.append(...CROPS.map((value) => Object.assign(make('option'), { value })));
  return list;
}

function render() {
  const entries = props.entries || [];
  const same = entries.length === cards.length && entries.every((entry, index) => entry.url === cards[index].url);
  if (!same || !entries.length) {
    cards = entries.map(makeCard);
    container.replaceChildren(...cards.map((card) => card.node), options());
    if (!entries.length && !(props.problems || []).length) {
      const empty = make('div', 'empty');
      empty.append(make('b', '', 'Four to eight images'));
      empty.append(make('span', '', 'One subject, different views, backgrounds and light.'));
      container.append(empty);
    }
    for (const problem of props.problems || []) container.append(make('p', 'note warning problem', problem));
  }
  cards.forEach((card, index) => {
    fill(card.caption, entries[index].caption);
    fill(card.crop, entries[index].crop);
  });
  renderCrops();
}

function renderCrops() {
  cards.forEach((card, index) => showCrop(card, (props.crops || [])[index]));
}

render();
watch(['entries', 'problems'], () => setTimeout(render));
watch('crops', () => setTimeout(renderCrops));
