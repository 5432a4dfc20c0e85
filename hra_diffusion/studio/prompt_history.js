// Stores the prompts of generations in this browser, the last ones first. The page loads it before its sections.
const promptHistory = {
  key: 'studio-prompts',
  most: 50,
  longest: 10000, // characters: the browser's storage is limited

  fields: () => ['#prompt textarea', '#negative-prompt textarea'].map((field) => document.querySelector(field)),

  entries() {
    try {
      const entries = JSON.parse(localStorage.getItem(this.key));
      return Array.isArray(entries) ? entries.filter((entry) => typeof entry?.prompt === 'string') : [];
    } catch { return []; }
  },

  store(entries) {
    try { localStorage.setItem(this.key, JSON.stringify(entries)); } catch { /* private windows cannot save it */ }
    document.dispatchEvent(new Event('prompt-history'));
  },

  remember() {
    const [prompt, negative] = this.fields().map((field) => field?.value.trim() ?? '');
    if (!prompt || prompt.length + negative.length > this.longest) return;
    const others = this.entries().filter((entry) => entry.prompt !== prompt || (entry.negative ?? '') !== negative);
    this.store([{ prompt, negative }, ...others].slice(0, this.most));
  },

  insert(entry) {
    const [prompt, negative] = this.fields();
    for (const [field, text] of [[prompt, entry.prompt], [negative, entry.negative ?? '']]) {
      if (!field) continue;
      field.value = text;
      field.dispatchEvent(new Event('input', { bubbles: true }));
    }
    prompt?.focus();
  },
};

document.addEventListener('click', ({ target }) => {
  if (target.closest?.('#generate')) promptHistory.remember();
}, true);
