// Renders the earlier prompts of prompt_history.js; a click inserts one. Texts are inserted as text, never as HTML.
const box = () => element.querySelector('.prompt-history');

function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  if (tag === 'button') node.type = 'button';
  return node;
}

function entryButton(entry) {
  const button = make('button', 'entry', '');
  button.append(make('span', '', entry.prompt));
  if (entry.negative) button.append(make('small', '', `Negative prompt: ${entry.negative}`));
  button.title = 'Replace the prompt and the negative prompt';
  button.addEventListener('click', () => promptHistory.insert(entry));
  return button;
}

function render() {
  const entries = promptHistory.entries();
  box().replaceChildren(...entries.map(entryButton));
  if (!entries.length) return box().append(make('p', 'note', 'The prompts of your generations, in this browser alone.'));
  const clear = make('button', 'clear', 'Clear history');
  clear.addEventListener('click', () => promptHistory.store([]));
  box().append(clear);
}

render();
document.addEventListener('prompt-history', () => { if (element.isConnected) render(); });
