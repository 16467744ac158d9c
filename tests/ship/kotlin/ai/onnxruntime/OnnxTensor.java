package ai.onnxruntime;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;

/** Stands in for onnxruntime's: it keeps the values and the shape it was given. */
public class OnnxTensor {
    public final Buffer values;
    public final long[] shape;
    public final OnnxJavaType type;

    private OnnxTensor(Buffer values, long[] shape, OnnxJavaType type) {
        this.values = values;
        this.shape = shape;
        this.type = type;
    }

    public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer values, long[] shape) {
        return new OnnxTensor(values, shape, OnnxJavaType.FLOAT);
    }

    public static OnnxTensor createTensor(
            OrtEnvironment environment, ByteBuffer values, long[] shape, OnnxJavaType type) {
        return new OnnxTensor(values, shape, type);
    }
}
