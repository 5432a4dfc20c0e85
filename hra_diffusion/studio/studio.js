// Keyboard shortcuts, and the switch between the light and the dark theme.
document.addEventListener('keydown', (event) => {
  const click = (selector) => {
    const button = [...document.querySelectorAll(selector)].find((node) => node.offsetParent && !node.disabled);
    if (button) { event.preventDefault(); button.click(); }
  };
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    document.activeElement?.blur?.(); // sends the text that is being typed
    setTimeout(() => click('#generate, #generate-grid, #train'), 50);
  }
  if (event.key === 'Escape') click('#stop, #stop-grid');
}, true);

// Small images are enlarged at most this many times, so that they stay sharp.
const MAX_ZOOM = 3;
document.addEventListener('load', ({ target }) => {
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
