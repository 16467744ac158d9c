// Open the model of this bundle, after checking that it is the expected one.
//
//   val (session, manifest) = load(OrtEnvironment.getEnvironment(), File("path/to/bundle"), "...")
//
// trp-export printed the digest; keep it in your source. Needs com.microsoft.onnxruntime:onnxruntime-android (on
// a JVM com.microsoft.onnxruntime:onnxruntime and org.json:json). On Android, copy the bundle out of the assets first.

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.security.MessageDigest
import kotlin.math.roundToInt
import org.json.JSONObject

private const val MOST_MANIFEST_BYTES = 8L * 1024 * 1024

data class Bundle(val session: OrtSession, val manifest: JSONObject)

/**
 * Throws IllegalArgumentException if any byte of the manifest or the model was changed. Warns on standard error (on Android
 * in the log) where onnxruntime is not of the version that the bundle was measured with.
 */
fun load(environment: OrtEnvironment, folder: File, digest: String): Bundle {
    val file = File(folder, "manifest.json")
    require(file.length() <= MOST_MANIFEST_BYTES) { "manifest.json is too large" }
    val written = file.readBytes()
    require(sha256(written).equals(digest.trim(), ignoreCase = true)) { "manifest.json does not have this digest" }
    val manifest = JSONObject(String(written, Charsets.UTF_8))
    require(manifest.getString("format") == "trp-bundle" && manifest.getInt("version") == 1) { "not a bundle of version 1" }
    warnOfOtherVersion(manifest, environment.version)
    val name = manifest.getString("model")
    require(!manifest.getJSONObject("files").has("$name.data")) { "models above 2 GB are not supported here" }
    return Bundle(environment.createSession(checked(folder, manifest, name)), manifest)
}

/**
 * The input (one image; float32, uint8 or int8, as the model takes it) from pixels as Bitmap.getPixels gives them, 0xAARRGGBB,
 * scaled and cut to the input's size.
 */
fun prepare(environment: OrtEnvironment, pixels: IntArray, width: Int, height: Int, manifest: JSONObject): OnnxTensor {
    val steps = manifest.getJSONObject("preprocessing")
    val mean = steps.getJSONArray("mean")
    val std = steps.getJSONArray("std")
    val scale = steps.getDouble("scale")
    val channels = mean.length()
    val values = FloatBuffer.allocate(channels * pixels.size)
    val layout = steps.getString("layout")
    val channelsFirst = layout.endsWith("CHW")
    val blueFirst = steps.getString("channels") == "BGR"
    for (channel in 0 until channels) {
        val shift = 8 * (if (blueFirst) channel else 2 - channel)
        for ((index, pixel) in pixels.withIndex()) {
            val value = if (channels == 1) grey(pixel) else ((pixel shr shift) and 0xff)
            val at = if (channelsFirst) channel * pixels.size + index else index * channels + channel
            values.put(at, ((value * scale - mean.getDouble(channel)) / std.getDouble(channel)).toFloat())
        }
    }
    val sizes = if (channelsFirst) listOf(channels, height, width) else listOf(height, width, channels)
    val shape = (if (layout.startsWith("N")) listOf(1) + sizes else sizes).map { it.toLong() }.toLongArray()
    val type = manifest.getJSONArray("inputs").getJSONObject(0).getString("type")
    if (type == "float32") return OnnxTensor.createTensor(environment, values, shape)
    require(type == "uint8" || type == "int8") { "prepare makes float32, uint8 and int8; this model takes $type" }
    val bytes = ByteBuffer.wrap(ByteArray(values.capacity()) { values.get(it).roundToInt().toByte() })
    return OnnxTensor.createTensor(environment, bytes, shape, OnnxJavaType.valueOf(type.uppercase()))
}

/** The version of onnxruntime that the bundle's latency was measured with, or else all other figures. */
fun measuredWith(manifest: JSONObject): String {
    val latency = manifest.getJSONObject("evidence").optJSONObject("latency")
    return latency?.getJSONObject("environment")?.getString("onnxruntime")
        ?: manifest.getJSONObject("provenance").optJSONObject("versions")?.optString("onnxruntime").orEmpty()
}

private fun warnOfOtherVersion(manifest: JSONObject, version: String) {
    val measured = measuredWith(manifest)
    if (measured.isEmpty() || minor(measured) == minor(version)) return
    System.err.println(
        "this bundle was measured with onnxruntime $measured; this is $version, which may differ in speed and rounding",
    )
}

private fun minor(version: String): String = version.split(".").take(2).joinToString(".")

private fun checked(folder: File, manifest: JSONObject, name: String): ByteArray {
    val listed = manifest.getJSONObject("files").getJSONObject(name)
    val file = File(folder, name)
    require(File(name).name == name && file.length() == listed.getLong("bytes")) { "$name is not the file that the manifest describes" }
    val bytes = file.readBytes()
    require(sha256(bytes) == listed.getString("sha256")) { "$name is not the file that the manifest describes" }
    return bytes
}

private fun sha256(bytes: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }

/** ITU-R 601, like Pillow. */
private fun grey(pixel: Int): Int =
    (((pixel shr 16) and 0xff) * 19595 + ((pixel shr 8) and 0xff) * 38470 + (pixel and 0xff) * 7471 + 0x8000) shr 16
