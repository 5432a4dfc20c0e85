// Keyboard shortcuts, and the switch between the light and the dark theme.
// A list of choices, an enlarged image, a dialog: Escape closes it first.
const OPEN = '[role="listbox"], dialog[open], [role="dialog"], .gallery-container .preview, .fullscreen';
function openAbove() {
  const visible = (node) => node.checkVisibility() && node.getBoundingClientRect().width > 1;
  return document.fullscreenElement || [...document.querySelectorAll(OPEN)].some(visible);
}

document.addEventListener('keydown', (event) => {
  const click = (selector) => {
    const button = [...document.querySelectorAll(selector)].find((node) => node.offsetParent && !node.disabled);
    if (button) { event.preventDefault(); button.click(); }
  };
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    document.activeElement?.blur?.(); // sends the text that is being typed
    setTimeout(() => click('#generate, #generate-grid, #train'), 50);
  }
  if (event.key === 'Escape' && !openAbove()) click('#stop, #stop-grid');
}, true);

// A message that begins with the label of a field in quotes leads to the field: its section opens, it has the focus.
const FIELD = 'input:not([type=file]), textarea, select, button';
function fieldOf(label) {
  const names = [...document.querySelectorAll('[data-testid="block-info"], [data-testid="block-label"], label')];
  const name = names.find((node) => node.textContent.trim() === label && node.closest('.tabitem')?.checkVisibility());
  return name?.closest('.block')?.querySelector(FIELD);
}
function openSections(field) {
  for (let box = field.parentElement; box; box = box.parentElement) {
    const closed = box.querySelector?.(':scope > button.label-wrap:not(.open)');
    if (closed && !closed.contains(field)) closed.click();
  }
}
new MutationObserver((changes) => {
  const added = changes.flatMap((change) => [...change.addedNodes]).filter((node) => node.querySelector);
  const message = added.flatMap((node) => [...node.querySelectorAll('[data-testid="toast-text"]')]).at(-1);
  const label = message?.textContent.match(/^“([^”]+)”/)?.[1];
  const field = label && fieldOf(label);
  if (field) { openSections(field); setTimeout(() => field.focus(), 200); }
}).observe(document.documentElement, { childList: true, subtree: true });

// A link to another tab.
document.addEventListener('click', ({ target }) => {
  const title = target.closest?.('[data-tab]')?.dataset.tab;
  const tabs = [...document.querySelectorAll('#tabs [role="tab"]')].filter((node) => node.textContent.trim() === title);
  (tabs.find((node) => node.checkVisibility()) ?? tabs[0])?.click();
});

// The sketchpad starts with its brush: gradio waits until a tool is chosen.
document.addEventListener('click', ({ target }) => {
  if (!target.closest?.('#sketch > .label-wrap')) return;
  const wait = (tries) => {
    const brush = document.querySelector('#sketchpad [aria-label="Brush"]');
    if (brush && document.querySelector('#sketchpad canvas')) brush.click();
    else if (tries) setTimeout(() => wait(tries - 1), 100);
  };
  setTimeout(() => wait(50), 300);
});

// Marks a section whose content is in use, so that it is seen while it is closed.
function markInUse(id, used) {
  document.getElementById(id)?.classList.toggle('in-use', Boolean(used));
}

// Small images are enlarged at most this many times, so that they stay sharp. Gradio repeats captions as alternative
// texts: screen readers would read them twice.
const MAX_ZOOM = 3;
document.addEventListener('load', ({ target }) => {
  if (target.closest?.('.thumbnail-item')?.querySelector('.caption-label')) target.alt = '';
  const thumbnail = target.closest?.('#images .thumbnail-item, #validation-images .thumbnail-item');
  const box = thumbnail ? target : target.closest?.('#slider');
  if (box && target.naturalWidth) box.style.maxWidth = `${MAX_ZOOM * target.naturalWidth}px`;
}, true);

function savedTheme() { try { return localStorage.getItem('studio-theme'); } catch { return null; } }
function setTheme(dark) {
  document.body.classList.toggle('dark', dark);
  try { localStorage.setItem('studio-theme', dark ? 'dark' : 'light'); } catch { /* private windows cannot save it */ }
}
document.addEventListener('click', (event) => {
  if (event.target.closest?.('#theme-switch')) setTheme(!document.body.classList.contains('dark'));
});
window.addEventListener('load', () => {
  const requested = new URLSearchParams(location.search).get('__theme');
  if (!requested && savedTheme()) setTimeout(() => setTheme(savedTheme() === 'dark'), 0);
});
