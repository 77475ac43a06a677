// The page of an exported network: takes an image, makes of it what the network takes, shows the likeliest classes.
// `embedded` (one file) has everything in it, gzip in base64; else files lie beside the page.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const embedded = window.embedded || null;

  async function bytes(name) {
    if (!embedded) {
      const answer = await fetch(name);
      if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
      return answer.arrayBuffer();
    }
    const packed = Uint8Array.from(atob(embedded[name]), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  }

  // ---- the network

  let facts, session, height, width, channels;

  async function load() {
    facts = JSON.parse(new TextDecoder().decode(await bytes("facts.json")));
    [height, width, channels] = facts.image_shape;
    ort.env.wasm.numThreads = 1; // more need a server that sends COOP and COEP
    if (embedded) {
      ort.env.wasm.wasmBinary = await bytes("ort-wasm-simd-threaded.wasm");
      const script = new Blob([await bytes("ort-wasm-simd-threaded.mjs")], { type: "text/javascript" });
      ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(script) };
    } else {
      ort.env.wasm.wasmPaths = new URL(".", document.baseURI).href;
    }
    session = await ort.InferenceSession.create(await bytes("model.onnx"), { executionProviders: ["wasm"] });
    await logits(new Uint8Array(height * width * channels)); // the first call prepares
  }

  // levels: uint8, height x width x channels
  async function logits(levels) {
    const image = new ort.Tensor("uint8", levels, [1, height, width, channels]);
    return (await session.run({ [session.inputNames[0]]: image }))[session.outputNames[0]].data;
  }

  function shares(values) {
    if (facts.task === "multilabel") return Array.from(values, (value) => 1 / (1 + Math.exp(-value)));
    const largest = Math.max(...values);
    const exps = Array.from(values, (value) => Math.exp(value - largest));
    const total = exps.reduce((sum, value) => sum + value, 0);
    return exps.map((value) => value / total);
  }

  // ---- images as the network takes them

  const small = document.createElement("canvas");

  // what is drawn, scaled so that its shorter side is as the network's images were before they were cropped, and its
  // middle; a sample was cropped already
  function shrunk(source, sourceWidth, sourceHeight, resized = facts.resized) {
    let [from, w, h] = [source, sourceWidth, sourceHeight];
    while (Math.max(width / w, height / h) * resized / Math.min(width, height) < 0.5) { // by halves, so that no pixel is passed over
      const half = document.createElement("canvas");
      half.width = Math.ceil(w / 2); half.height = Math.ceil(h / 2);
      half.getContext("2d").drawImage(from, 0, 0, half.width, half.height);
      [from, w, h] = [half, half.width, half.height];
    }
    small.width = width; small.height = height;
    const context = small.getContext("2d", { willReadFrequently: true });
    const scale = Math.max(width / w, height / h) * resized / Math.min(width, height);
    context.imageSmoothingEnabled = scale !== 1; context.imageSmoothingQuality = "high";
    if (channels < 4) { context.fillStyle = "#fff"; context.fillRect(0, 0, width, height); }
    context.drawImage(from, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale);
    return levelsOf(context);
  }

  function levelsOf(context) {
    const pixels = context.getImageData(0, 0, width, height).data;
    const levels = new Uint8Array(height * width * channels);
    for (let place = 0; place < height * width; place++) {
      const [red, green, blue, alpha] = pixels.subarray(4 * place, 4 * place + 4);
      if (channels === 1) levels[place] = Math.round((299 * red + 587 * green + 114 * blue) / 1000);
      else levels.set(channels === 3 ? [red, green, blue] : [red, green, blue, alpha], channels * place);
    }
    return levels;
  }

  function show(levels) {
    const canvas = at("seen");
    canvas.width = width; canvas.height = height;
    const image = new ImageData(width, height);
    for (let place = 0; place < height * width; place++) {
      for (let channel = 0; channel < 3; channel++) {
        image.data[4 * place + channel] = levels[channels * place + (channels < 3 ? 0 : channel)];
      }
      image.data[4 * place + 3] = channels === 4 ? levels[4 * place + 3] : 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // ---- answers

  let waiting = null, running = false;

  // of images that come faster than answers the last one counts
  function classify(levels) {
    waiting = levels;
    if (!running) running = true, next();
  }

  async function next() {
    while (waiting) {
      const levels = waiting;
      waiting = null;
      const start = performance.now();
      try {
        const values = await logits(levels);
        say(shares(values), performance.now() - start);
      } catch (error) {
        at("status").textContent = `The network failed: ${error}`;
      }
    }
    running = false;
  }

  function say(values, milliseconds) {
    const order = values.map((_, number) => number).sort((a, b) => values[b] - values[a]).slice(0, 5);
    const list = at("answers");
    while (list.children.length < order.length) {
      const row = document.createElement("li");
      row.innerHTML = '<span class="name"></span><span class="share"></span><span class="bar"><i></i></span>';
      list.append(row);
    }
    order.forEach((number, place) => {
      const row = list.children[place];
      const share = `${(100 * values[number]).toFixed(1)} %`;
      row.querySelector(".name").textContent = facts.class_names[number];
      row.querySelector(".share").textContent = share;
      row.querySelector("i").style.width = share.replace(" ", "");
    });
    at("status").textContent = `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms in this browser`;
    document.body.dataset.answered = Number(document.body.dataset.answered || 0) + 1;
  }

  // ---- what is given

  function ofSample(picture) {
    return shrunk(picture, picture.naturalWidth, picture.naturalHeight, Math.min(width, height));
  }

  function take(levels) {
    stopCamera(); drawing(false);
    show(levels);
    classify(levels);
    return levels;
  }

  async function takeFile(file) {
    try {
      const picture = await createImageBitmap(file);
      take(shrunk(picture, picture.width, picture.height));
    } catch {
      at("status").textContent = "This is no image that the browser can read.";
    }
  }

  function takeAny(transfer) {
    const file = [...(transfer?.files || [])].find((each) => each.type.startsWith("image/"));
    if (file) takeFile(file);
    else if (transfer?.files?.length) at("status").textContent = "This is no image that the browser can read.";
    return Boolean(file);
  }

  function begin() {
    at("choose").onclick = () => at("file").click();
    at("file").onchange = () => { if (at("file").files[0]) takeFile(at("file").files[0]); at("file").value = ""; };
    document.addEventListener("paste", (event) => { if (takeAny(event.clipboardData)) event.preventDefault(); });
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
    document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      takeAny(event.dataTransfer);
    });
    if (navigator.mediaDevices?.getUserMedia) {
      at("camera").hidden = false;
      at("camera").onclick = () => (stream ? stopCamera() : startCamera());
    }
    if (Math.max(height, width) > 64) { at("seen").classList.add("large"); at("samples").classList.add("large"); }
    for (const id of ["seen", "pad"]) at(id).style.aspectRatio = `${width} / ${height}`;
  }

  async function samples() {
    for (const { file, label } of facts.samples) {
      const picture = new Image();
      picture.alt = label;
      picture.src = embedded ? embedded[file] : file;
      const button = document.createElement("button");
      button.type = "button"; button.title = label;
      button.append(picture);
      button.onclick = () => take(ofSample(picture));
      at("samples").append(button);
      await picture.decode();
    }
  }

  // ---- the camera

  let stream = null;

  async function startCamera() {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      at("status").textContent = `There is no camera for this page (${error.name}).`;
      return;
    }
    drawing(false);
    const video = at("video");
    video.srcObject = stream; video.hidden = false; at("seen").hidden = true;
    at("camera").textContent = "Stop camera"; at("camera").setAttribute("aria-pressed", "true");
    await video.play();
    const look = () => {
      if (!stream) return;
      if (!running && video.videoWidth) classify(shrunk(video, video.videoWidth, video.videoHeight));
      requestAnimationFrame(look);
    };
    look();
  }

  function stopCamera() {
    if (!stream) return;
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
    at("video").hidden = true; at("seen").hidden = false;
    at("camera").textContent = "Camera"; at("camera").setAttribute("aria-pressed", "false");
  }

  // ---- drawing, for small images of one channel

  const PAD = 280; // pixels of the pad's longer side
  let strokes = [];

  function canDraw() {
    return channels === 1 && Math.max(height, width) <= 64;
  }

  function drawing(on) {
    if (!canDraw()) return;
    at("pad").hidden = at("clear").hidden = !on;
    at("seen").hidden = on;
    at("draw").setAttribute("aria-pressed", String(on));
    if (on) { stopCamera(); at("pad").hidden = false; at("seen").hidden = true; }
  }

  function beginDrawing() {
    const pad = at("pad"), scale = PAD / Math.max(height, width);
    pad.width = width * scale; pad.height = height * scale;
    const context = pad.getContext("2d", { willReadFrequently: true });
    const [paper, ink] = facts.mean[0] < 0.5 ? ["#000", "#fff"] : ["#fff", "#000"];
    const wipe = () => { strokes = []; context.fillStyle = paper; context.fillRect(0, 0, pad.width, pad.height); };
    const place = (event) => {
      const box = pad.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * pad.width, (event.clientY - box.top) / box.height * pad.height];
    };
    const line = (from, to) => {
      context.strokeStyle = ink; context.lineCap = "round"; context.lineWidth = PAD / 12;
      context.beginPath(); context.moveTo(...from); context.lineTo(...to); context.stroke();
    };
    let last = null;
    pad.onpointerdown = (event) => { pad.setPointerCapture(event.pointerId); last = place(event); line(last, last); };
    pad.onpointermove = (event) => {
      if (!last) return;
      for (const each of event.getCoalescedEvents?.() || [event]) { const to = place(each); line(last, to); strokes.push(to); last = to; }
      classify(centred(pad, paper));
    };
    pad.onpointerup = pad.onpointercancel = () => { if (last) classify(centred(pad, paper)); last = null; };
    at("draw").hidden = false;
    at("draw").onclick = () => drawing(at("pad").hidden);
    at("clear").onclick = () => { wipe(); at("answers").replaceChildren(); at("status").textContent = "Draw a character."; };
    wipe();
  }

  // As MNIST was made: the ink fits a box of 20 of 28 pixels, its centre of mass in the middle.
  function centred(pad, paper) {
    const context = pad.getContext("2d");
    const pixels = context.getImageData(0, 0, pad.width, pad.height).data;
    const background = paper === "#000" ? 0 : 255;
    let left = pad.width, right = -1, top = pad.height, bottom = -1, mass = 0, x = 0, y = 0;
    for (let row = 0; row < pad.height; row++) {
      for (let column = 0; column < pad.width; column++) {
        const ink = Math.abs(pixels[4 * (row * pad.width + column)] - background);
        if (ink < 32) continue;
        left = Math.min(left, column); right = Math.max(right, column);
        top = Math.min(top, row); bottom = Math.max(bottom, row);
        mass += ink; x += ink * column; y += ink * row;
      }
    }
    if (right < 0) return shrunk(pad, pad.width, pad.height);
    const scale = (20 / 28) * Math.max(pad.width, pad.height) / Math.max(right - left + 1, bottom - top + 1);
    const moved = document.createElement("canvas");
    moved.width = pad.width; moved.height = pad.height;
    const target = moved.getContext("2d", { willReadFrequently: true });
    target.fillStyle = paper; target.fillRect(0, 0, moved.width, moved.height);
    target.imageSmoothingQuality = "high";
    target.setTransform(scale, 0, 0, scale, pad.width / 2 - scale * x / mass, pad.height / 2 - scale * y / mass);
    target.drawImage(pad, left, top, right - left + 1, bottom - top + 1, left, top, right - left + 1, bottom - top + 1);
    const levels = shrunk(moved, moved.width, moved.height);
    show(levels);
    return levels;
  }

  // ---- the beginning

  async function main() {
    try {
      await load();
    } catch (error) {
      at("status").textContent = `The network cannot be loaded: ${error}`;
      document.documentElement.dataset.state = "failed";
      return;
    }
    begin();
    if (canDraw()) beginDrawing();
    await samples();
    at("status").textContent = "Ready.";
    if (canDraw()) { at("status").textContent = "Draw a character."; drawing(true); }
    else if (facts.samples.length) at("samples").firstElementChild.click();
    document.documentElement.dataset.state = "ready";
    if (!embedded && "serviceWorker" in navigator && location.protocol.startsWith("http")) {
      await navigator.serviceWorker.register("service-worker.js").catch(() => {});
    }
  }

  // for tests, and for who builds on the page
  window.network = {
    logits,
    facts: () => facts,
    ofSample: (number) => logits(ofSample(at("samples").children[number].firstElementChild)),
  };
  main();
})();
