package ai.onnxruntime;

/** Stands in for onnxruntime's. */
public enum OnnxJavaType {
    FLOAT,
    INT8,
    UINT8
}
