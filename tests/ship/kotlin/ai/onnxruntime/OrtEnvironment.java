package ai.onnxruntime;

public final class OrtEnvironment {
    public static OrtEnvironment getEnvironment() {
        return new OrtEnvironment();
    }

    public String getVersion() {
        return "1.2.3";
    }

    public OrtSession createSession(byte[] model) {
        return new OrtSession(model);
    }
}
