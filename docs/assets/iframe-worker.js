// Browsers start no workers for pages that were opened from disk. The search's worker runs in a hidden frame instead;
// the theme asks for `parent.IFrameWorker` to know that it is in one.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inside = frame.contentWindow;
      this.inside.document.write("<!doctype html><title>search</title><body>");
      this.inside.document.close();
      this.inside.postMessage = (data) => this.tell(this, data);
      this.inside.importScripts = (...urls) => urls.reduce((last, each) => last.then(() => this.load(each)), Promise.resolve());
      this.ready = this.load(new URL(url, document.baseURI));
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script");
        Object.assign(script, { src: url, onload: done, onerror: failed });
        this.inside.document.body.append(script);
      });
    }
    tell(target, data) {
      const event = new MessageEvent("message", { data });
      target.dispatchEvent(event);
      if (target.onmessage) target.onmessage(event);
    }
    postMessage(data) {
      this.ready.then(() => this.tell(this.inside, data));
    }
    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
