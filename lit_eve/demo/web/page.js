// The parts of the page that Gradio has no component for. Each function is run once, when its component is there.
const litEve = {
  // Images come by button, drop, paste or camera; each is sent as base64, and none touches the server's disk.
  adder(element, trigger, maxBytes) {
    const input = element.querySelector("input");
    const view = element.querySelector(".camera-view");
    const video = element.querySelector("video");
    const told = element.querySelector(".told");

    const base64 = (file) => new Promise((done, failed) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => failed(reader.error);
      reader.readAsDataURL(file);
    });
    // One after the other, each when the server has said what became of the last: requests that are under way together
    // may overtake each other, and a question about "the first image" is about the order.
    let number = 0;
    let received = () => {};
    litEve.received = (latest) => { if (latest === number) received(); };
    const send = (file, data, isFirst) => new Promise((done) => {
      received = done;
      setTimeout(done, 60_000);  // a request that got lost does not hold up the others for ever
      number += 1;
      trigger("add", { name: file.name || "image", data, number, first: isFirst });
    });
    const addAll = async (files) => {
      told.textContent = "";
      let isFirst = true;
      const refuse = (sentence) => { told.textContent += (told.textContent && "\n") + sentence; };
      for (const file of files) {
        if (file.size > maxBytes) {
          refuse(`${file.name}: the file has ${file.size} bytes, more than the limit of ${maxBytes}`);
          continue;
        }
        try {
          await send(file, await base64(file), isFirst);
          isFirst = false;
        } catch (error) {
          refuse(`${file.name} cannot be read: ${error.message}`);
        }
      }
    };
    let before = Promise.resolve();
    const add = (files) => { before = before.then(() => addAll(files)); };
    const endCamera = () => {
      video.srcObject?.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
      view.hidden = true;
    };

    element.querySelector(".add").addEventListener("click", () => input.click());
    input.addEventListener("change", () => { add([...input.files]); input.value = ""; });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) { event.preventDefault(); add(files); }
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => { event.preventDefault(); add([...event.dataTransfer.files]); });

    element.querySelector(".camera").addEventListener("click", async () => {
      if (!view.hidden) return endCamera();
      told.textContent = "";
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
        view.hidden = false;
        await video.play();
        element.querySelector(".shot").focus();
      } catch (error) {
        endCamera();
        told.textContent = "There is no camera that this page may use.";
      }
    });
    element.querySelector(".shot").addEventListener("click", () => {
      const canvas = document.createElement("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => { endCamera(); add([new File([blob], "camera.png")]); }, "image/png");
      element.querySelector(".camera").focus();
    });
  },

  // Buttons in HTML that the server wrote tell their index.
  indexed(element, trigger, event) {
    element.addEventListener("click", (click) => {
      const button = click.target.closest("[data-index]");
      if (button) trigger(event, { index: Number(button.dataset.index) });
    });
  },

  // Words are chosen with the mouse, or with arrow keys and Enter; an answer is one stop of the tab key.
  words(element, trigger) {
    const choose = (word) => {
      document.querySelectorAll(".word[aria-pressed=true]").forEach((other) => other.setAttribute("aria-pressed", "false"));
      word.setAttribute("aria-pressed", "true");
      const { turn, model } = word.closest(".answer").dataset;
      trigger("word", { turn: Number(turn), model, word: Number(word.dataset.word) });
      if (window.innerWidth < 760) document.getElementById("look").scrollIntoView({ behavior: "smooth" });
    };
    element.addEventListener("click", (event) => {
      const word = event.target.closest(".word");
      if (word) choose(word);
    });
    element.addEventListener("keydown", (event) => {
      const word = event.target.closest(".word");
      if (!word) return;
      const words = [...word.parentElement.querySelectorAll(".word")];
      const place = words.indexOf(word);
      const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: words.length - 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(word);
      } else if (next !== undefined) {
        event.preventDefault();
        const target = words[Math.min(Math.max(next, 0), words.length - 1)];
        words.forEach((other) => { other.tabIndex = other === target ? 0 : -1; });
        target.focus();
      }
    });
  },
};
