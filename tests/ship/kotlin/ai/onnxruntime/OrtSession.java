package ai.onnxruntime;

/** Stands in for onnxruntime's: it keeps the model it was given. */
public class OrtSession {
    public final byte[] model;

    OrtSession(byte[] model) {
        this.model = model;
    }
}
