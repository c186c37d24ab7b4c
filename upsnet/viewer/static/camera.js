// A photo from a camera of this machine.

const WORDS = {
  NotAllowedError: "The browser may not use the camera: allow it beside the address, and try again.",
  NotFoundError: "There is no camera here.",
  NotReadableError: "Another program uses the camera.",
};

/** onPhoto(file): what was taken. */
export function connectCamera(onPhoto) {
  const [dialog, video, words, shoot] = ["camera-dialog", "camera-picture", "camera-words", "shoot"].map((id) =>
    document.getElementById(id),
  );
  let stream = null;

  async function open() {
    words.textContent = "Waiting for the camera";
    shoot.disabled = true;
    dialog.showModal();
    try {
      if (!navigator.mediaDevices) throw new DOMException("", "InsecureContextError");
      const found = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } }, audio: false });
      if (!dialog.open) return stop(found);
      stream = found;
      video.srcObject = stream;
      await video.play();
      words.textContent = "";
      shoot.disabled = false;
      shoot.focus();
    } catch (error) {
      words.textContent = WORDS[error.name] ?? "Browsers give the camera to 127.0.0.1, localhost and https alone.";
    }
  }

  function take() {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(
      (content) => {
        dialog.close();
        const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
        if (content) onPhoto(new File([content], `camera ${time}.jpg`, { type: "image/jpeg" }));
      },
      "image/jpeg",
      0.95,
    );
  }

  function stop(found) {
    found?.getTracks().forEach((track) => track.stop());
  }

  document.getElementById("camera").addEventListener("click", open);
  document.getElementById("camera-close").addEventListener("click", () => dialog.close());
  shoot.addEventListener("click", take);
  dialog.addEventListener("close", () => {
    stop(stream);
    stream = video.srcObject = null;
  });
}
