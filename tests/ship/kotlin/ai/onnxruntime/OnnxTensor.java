package ai.onnxruntime;

import java.nio.FloatBuffer;

/** Stands in for onnxruntime's: it keeps the values and the shape it was given. */
public class OnnxTensor {
    public final FloatBuffer values;
    public final long[] shape;

    private OnnxTensor(FloatBuffer values, long[] shape) {
        this.values = values;
        this.shape = shape;
    }

    public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer values, long[] shape) {
        return new OnnxTensor(values, shape);
    }
}
